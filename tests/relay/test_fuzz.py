"""Whatever programs, TPMs and files say: never anything but a `RelayError`, never a response that is none, no hang."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tpm_mtls_relay import layers
from tpm_mtls_relay.errors import RelayError
from tpm_mtls_relay.loaded.ledger import files, prefix, records
from tpm_mtls_relay.loaded.leftovers import flush_leftovers
from tpm_mtls_relay.loaded.loading import expected, loaded_key, loads
from tpm_mtls_relay.loaded.public_area import PublicArea, template
from tpm_mtls_relay.loaded.tracking import Tracking
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import (
    HEADER,
    NO_SESSIONS,
    SESSIONS,
    check_response,
    handles_of,
    parameters_of,
    sessions_of,
)
from tpm_mtls_relay.options import parse_options
from tpm_mtls_relay.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

CODES = sorted(value for name, value in vars(commands).items() if name.isupper() and isinstance(value, int))
HANDLES = st.sampled_from([0x80000000, 0x80FFFFFF, 0x81000001, 0x02000000, 0x03000001, 0x40000001, 0x40000007])
PASSWORD = bytes.fromhex("0000000940000009000000 0000")
POLICY_SESSION = bytes.fromhex("000000090300000100000000 00")
PUBLIC = bytes.fromhex("0023000b00040072000000100018000b0003001000200102030405060708")

pieces = st.one_of(
    st.binary(max_size=80),
    HANDLES.map(lambda handle: handle.to_bytes(4, "big")),
    st.sampled_from([PASSWORD, POLICY_SESSION, len(PUBLIC).to_bytes(2, "big") + PUBLIC, PUBLIC, bytes(2), bytes(4)]),
)
bodies = st.lists(pieces, max_size=8).map(b"".join)


@st.composite
def messages(draw: st.DrawFn, codes: st.SearchStrategy[int]) -> bytes:
    """Well-framed, with nonsense inside."""
    body = draw(bodies)
    tag = draw(st.sampled_from([NO_SESSIONS, SESSIONS]))
    return HEADER.pack(tag, HEADER.size + len(body), draw(codes)) + body


requests = messages(st.one_of(st.sampled_from(CODES), st.integers(0x11F, 0x1FF), st.integers(0, 0xFFFFFFFF)))
responses = messages(st.sampled_from([0, 0, 0, 0, 0x922, 0x101, 0x9A2, 0x910, 0x1CB, 0xB0009]))


class Nonsense:
    """A TPM that answers anything that has a response's frame, or nothing."""

    def __init__(self, answers: list[bytes | RelayError]) -> None:
        self._answers = answers

    def __call__(self, _command: bytes) -> bytes:
        answer = self._answers.pop() if self._answers else HEADER.pack(NO_SESSIONS, HEADER.size, 0x101)
        if isinstance(answer, RelayError):
            raise answer
        return check_response(answer)

    def close(self) -> None:
        """Nothing to close."""


answers = st.lists(st.one_of(responses, st.binary(max_size=40), st.just(RelayError("broken", 0xBF942))), max_size=12)


@settings(deadline=None)
@given(
    stream=st.one_of(st.binary(max_size=200), st.lists(requests, max_size=4).map(b"".join)), more=st.binary(max_size=9)
)
def test_whatever_a_program_writes_it_gets_well_framed_responses(stream: bytes, more: bytes) -> None:
    answer = HEADER.pack(NO_SESSIONS, HEADER.size, 0)
    from_program, to_relay = os.pipe()
    from_relay, to_program = os.pipe()
    os.write(to_relay, stream + more)
    os.close(to_relay)
    Service(from_program, to_program, lambda _: answer, lambda _: None).run()
    os.close(to_program)
    said = b""
    while piece := os.read(from_relay, 65536):
        said += piece
    assert len(said) % HEADER.size == 0
    for descriptor in (from_program, from_relay):
        os.close(descriptor)


@settings(deadline=None)
@given(message=requests, response=responses)
def test_parsers_of_messages_raise_nothing_else(message: bytes, response: bytes) -> None:
    sessions_of(message)
    parsers: list[Callable[[], object]] = [
        lambda: handles_of(message),
        lambda: parameters_of(message),
        lambda: check_response(message[:-1]),
        lambda: PublicArea(message[HEADER.size :]),
        lambda: template(message[HEADER.size :]),
    ]
    if loads(message):
        parsers += [lambda: expected(message), lambda: loaded_key(message, response)]
    for parse in parsers:
        with suppress(RelayError):
            parse()


@settings(deadline=None)
@given(programs=st.lists(requests, max_size=6), tpm=answers)
def test_tracking_passes_on_whatever_the_tpm_answers(programs: list[bytes], tpm: list[bytes | RelayError]) -> None:
    tracking = Tracking(Nonsense(tpm))
    for each in programs:
        with suppress(RelayError):
            check_response(tracking(each))
    tracking.objects.connection_lost(raw=len(programs) % 2 == 0)
    for each in programs:
        with suppress(RelayError):
            check_response(tracking(each))
    tracking.close()


@settings(max_examples=200, deadline=None)
@given(programs=st.lists(requests, min_size=1, max_size=6), tpm=answers)
def test_all_layers_together_raise_nothing_else(programs: list[bytes], tpm: list[bytes | RelayError]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            nonsense = Nonsense([answer for answer in tpm if not _is_busy(answer)])
            whole = layers.Layers(
                parse_options(["--tcti", "swtpm:port=1", "--policies", folder]), lambda _tcti, _limits: nonsense
            )
            for each in programs:
                with suppress(RelayError):
                    check_response(whole(each))
            whole.close()
        finally:
            os.environ.pop("XDG_RUNTIME_DIR")
            if before is not None:
                os.environ["XDG_RUNTIME_DIR"] = before


def _is_busy(answer: bytes | RelayError) -> bool:
    """The layers would wait."""
    return isinstance(answer, bytes) and answer[6:10] in {bytes.fromhex("00000922"), bytes.fromhex("000b0009")}


@settings(deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=3000),
        st.lists(st.tuples(st.integers(0, 4), HANDLES), max_size=5).map(
            lambda rows: b"".join(
                bytes([kind]) + handle.to_bytes(4, "big") + b"\0\x10" + bytes(1017) for kind, handle in rows
            )
        ),
    ),
    tpm=answers,
)
def test_a_ledger_may_hold_anything(content: bytes, tpm: list[bytes | RelayError]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{prefix('swtpm:')}1-1.ledger"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(descriptor, content)
        for record in records(descriptor):
            assert record.kind in {1, 2, 3}
        os.close(descriptor)
        with suppress(RelayError):
            flush_leftovers(folder, "swtpm:", Nonsense(tpm))
            assert files(folder, "swtpm:") == []


@settings(deadline=None)
@given(
    arguments=st.lists(
        st.one_of(st.sampled_from(["--tcti", "--policies", "--check", "--time-limit"]), st.text()), max_size=6
    )
)
def test_options_may_be_anything(arguments: list[str]) -> None:
    with suppress(RelayError):
        assert parse_options(arguments).tcti
