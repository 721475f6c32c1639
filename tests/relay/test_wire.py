"""The framing of commands and responses, and where handles, sessions and parameters lie in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.relay import relay_layers
from tpm_mtls_relay import errors
from tpm_mtls_relay.errors import MalformedCommandError, TransportError, UnreadableError
from tpm_mtls_relay.loaded.loading import loads
from tpm_mtls_relay.messages.commands import GET_CAPABILITY, SIGN, handle_count
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import (
    HEADER,
    NO_SESSIONS,
    SESSIONS,
    check_response,
    code_of,
    handles_of,
    parameters_of,
    refusal,
    sessions_of,
    simple_command,
    size_of,
    tag_of,
)

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

KEY = 0x80000001
AREA = bytes.fromhex("40000009 0000 00 0003 616263  03000000 0002 1122 41 0000")
SIGN_COMMAND = (
    HEADER.pack(SESSIONS, 10 + 4 + 4 + len(AREA) + 2, SIGN)
    + KEY.to_bytes(4, "big")
    + len(AREA).to_bytes(4, "big")
    + AREA
    + b"pq"
)


def test_the_handle_counts_are_the_tpms_own(tpm: SimulatedTpm) -> None:
    """TPMA_CC: cHandles in bits 25 to 27, rHandle in bit 28 (part 2, table 43)."""
    question = simple_command(GET_CAPABILITY, b"".join(n.to_bytes(4, "big") for n in (2, 0x11F, 0x100)))
    with relay_layers(tpm) as layers:
        reader = Reader(layers(question), 10 + 1 + 4)
    attributes = [reader.number(4) for _ in range(reader.number(4))]
    assert len(attributes) > 90
    for each in attributes:
        command = each & 0xFFFF
        assert handle_count(command) == each >> 25 & 7, hex(command)
        assert loads(simple_command(command)) == bool(each >> 28 & 1), hex(command)


@pytest.mark.parametrize("code", [0, 0x11E, 0x123, 0x15A, 0x19B, 0x2000_0000, 0xFFFFFFFF])
def test_what_is_no_command_of_the_specification_has_no_handles(code: int) -> None:
    assert handle_count(code) is None
    command = HEADER.pack(SESSIONS, 14, code) + b"abcd"
    assert handles_of(command) == ()
    assert sessions_of(command) == []
    assert parameters_of(command) == b""


def test_handles_sessions_and_parameters_are_found() -> None:
    assert handles_of(SIGN_COMMAND) == (KEY,)
    assert sessions_of(SIGN_COMMAND) == [(0x40000009, 0), (0x03000000, 0x41)]
    assert parameters_of(SIGN_COMMAND) == b"pq"
    without = simple_command(SIGN, b"pq", handles=(KEY,))
    assert handles_of(without) == (KEY,)
    assert sessions_of(without) == []
    assert parameters_of(without) == b"pq"


@pytest.mark.parametrize("size", range(10, len(SIGN_COMMAND) - 2))
def test_a_command_that_is_cut_off_has_no_sessions_and_no_parameters(size: int) -> None:
    command = SIGN_COMMAND[:size]
    assert sessions_of(command) == []
    with pytest.raises(UnreadableError, match="announced"):
        parameters_of(command)


def test_a_command_without_its_handle_is_unreadable() -> None:
    with pytest.raises(UnreadableError, match="4 bytes are announced, 2 are there"):
        handles_of(HEADER.pack(NO_SESSIONS, 12, SIGN) + b"ab")


@pytest.mark.parametrize(("tag", "size"), [(NO_SESSIONS, 10), (SESSIONS, 4096), (NO_SESSIONS, 4097)])
def test_the_size_of_a_command_is_in_its_header(tag: int, size: int) -> None:
    assert size_of(HEADER.pack(tag, size, SIGN)) == size


@pytest.mark.parametrize(("tag", "size"), [(0x00C1, 10), (0x8003, 10), (NO_SESSIONS, 9), (0, 0)])
def test_what_begins_no_command_is_malformed(tag: int, size: int) -> None:
    with pytest.raises(MalformedCommandError, match="no TPM command") as caught:
        size_of(HEADER.pack(tag, size, SIGN))
    assert caught.value.code == errors.MALFORMED_COMMAND


@pytest.mark.parametrize("tag", [NO_SESSIONS, SESSIONS, 0x00C4])
def test_a_response_whose_header_is_true_is_passed_on(tag: int) -> None:
    response = HEADER.pack(tag, 12, 0) + b"ab"
    assert check_response(response) is response


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"garbage",
        HEADER.pack(0x1234, 10, 0),
        HEADER.pack(NO_SESSIONS, 11, 0),
        HEADER.pack(NO_SESSIONS, 10, 0) + b"x",
    ],
)
def test_a_response_whose_header_lies_is_garbage(response: bytes) -> None:
    with pytest.raises(TransportError, match="garbage") as caught:
        check_response(response)
    assert caught.value.code == errors.MALFORMED_RESPONSE


def test_a_refusal_is_a_response_with_the_errors_code() -> None:
    response = refusal(errors.KeyGoneError("gone"))
    assert check_response(response) == response
    assert (tag_of(response), code_of(response)) == (NO_SESSIONS, errors.KEY_GONE)


def test_a_reader_refuses_what_is_not_there_and_what_is_too_much() -> None:
    reader = Reader(b"\x00\x03abc\x00\x00\x00\x01xyz")
    assert reader.sized() == b"abc"
    assert reader.sized_long() == b"x"
    with pytest.raises(UnreadableError, match="2 bytes too many"):
        reader.end()
    assert not reader.at_end
    assert reader.rest() == b"yz"
    reader.end()
    assert reader.at_end
    with pytest.raises(UnreadableError, match="1 bytes are announced, 0 are there"):
        reader.number(1)
