"""Digests in software: what the TPM would have answered, and only where a null ticket is good enough."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.hash_programs import HashProgram, steps
from support.shortcuts import ALGORITHMS, PROPERTIES, TappedShortcuts, shortcuts_before
from support.tpm_commands import (
    ECDSA,
    ENDORSEMENT,
    NULL,
    NULL_TICKET,
    OWNER,
    PLATFORM,
    RSAPSS,
    RSASSA,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    SRK,
    DirectTpm,
    complete_sequence,
    digest_in,
    flush,
    get_capability,
    handle_in,
    handles_in,
    hash_command,
    load,
    parameters_in,
    read_public,
    sign,
    sized,
    start_sequence,
    update_sequence,
    with_password,
)
from support.tpm_keys import make_key
from tpm_mtls_relay.loaded.objects import Objects
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, code_of, simple_command
from tpm_mtls_relay.shortcuts.hashing import (
    CONTEXT_LIMIT,
    NAMES,
    SEQUENCE_LIMIT,
    SoftwareHashing,
    _find,
    digest_of,
    new_hash,
)
from tpm_mtls_relay.shortcuts.virtual_handles import FIRST, VirtualHandles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

START_HMAC_SESSION = simple_command(
    commands.START_AUTH_SESSION,
    sized(bytes(16)) + sized(b"") + bytes.fromhex("00 0010 000b"),
    handles=(NULL, NULL),
)


@pytest.fixture
def layers(tpm: SimulatedTpm, tmp_path: Path) -> Iterator[TappedShortcuts]:
    """Layers of a program that has loaded an unrestricted key."""
    make_key(tpm, tmp_path)
    with shortcuts_before(tpm) as made:
        assert code_of(made(load(tmp_path, "ecc-p256-0"))) == 0
        made.sent.clear()
        yield made


@pytest.mark.parametrize("name", NAMES.values())
@given(st.lists(st.binary(max_size=300)))
def test_digests_are_hashlibs(name: str, pieces: list[bytes]) -> None:
    function = new_hash(name)
    for piece in pieces:
        function.update(piece)
    expected = hashlib.new(name, b"".join(pieces)).digest()
    assert function.digest() == expected == digest_of(name, b"".join(pieces))


@pytest.mark.parametrize("name", NAMES.values())
def test_a_python_without_the_small_modules_uses_hashlib(name: str) -> None:
    found = _find(name, ("no_such_module", "sys"))()
    assert found.digest() == hashlib.new(name).digest()


@pytest.mark.parametrize("algorithm", [SHA1, SHA256, SHA384, SHA512])
@pytest.mark.parametrize("hierarchy", [OWNER, NULL])
@pytest.mark.parametrize("size", [0, 1, 1024])
def test_a_hash_is_answered_without_the_tpm_and_as_the_tpm_would_but_for_the_ticket(
    tpm: SimulatedTpm, layers: TappedShortcuts, algorithm: int, hierarchy: int, size: int
) -> None:
    command = hash_command(bytes(size), algorithm, hierarchy)
    ours, tpms = layers(command), DirectTpm(tpm)(command)
    assert layers.sent == []
    reader = parameters_in(ours)
    assert reader.sized() == digest_in(tpms)
    assert reader.rest() == NULL_TICKET
    if hierarchy == NULL:
        assert ours == tpms


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps())
def test_any_program_gets_the_digests_and_errors_that_a_second_tpm_gives(
    layers: TappedShortcuts, second: DirectTpm, program: list[tuple[str, int, bytes, int]]
) -> None:
    layers.sent.clear()
    assert HashProgram(layers).run(program) == HashProgram(second).run(program)
    assert layers.sent == []


@pytest.fixture
def second(make_tpm: Callable[[], SimulatedTpm]) -> DirectTpm:
    """Another TPM, without anything in between."""
    return DirectTpm(make_tpm())


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(lambda h: update_sequence(h, b"x", b"wrong"), id="wrong password"),
        pytest.param(lambda h: update_sequence(h, bytes(1025)), id="too much data"),
        pytest.param(lambda h: complete_sequence(h, bytes(1025)), id="too much data at the end"),
        pytest.param(lambda h: complete_sequence(h, b"", 0x40000002), id="no hierarchy"),
        pytest.param(lambda h: with_password(commands.SEQUENCE_UPDATE, b"\0\3ab", handles=(h,)), id="cut off"),
        pytest.param(lambda h: with_password(commands.SEQUENCE_UPDATE, b"", handles=(h,)), id="no data"),
        pytest.param(lambda h: with_password(commands.SEQUENCE_UPDATE, b"\0\1ab", handles=(h,)), id="a byte too many"),
        pytest.param(
            lambda h: with_password(commands.SEQUENCE_COMPLETE, b"\0\0@", handles=(h,)), id="half a hierarchy"
        ),
        pytest.param(lambda h: simple_command(commands.SEQUENCE_UPDATE, b"\0\1a", handles=(h,)), id="no password"),
        pytest.param(lambda h: simple_command(commands.SEQUENCE_COMPLETE, b"", handles=(h,)), id="nothing"),
    ],
)
def test_a_wrong_use_of_a_sequence_gets_the_tpms_response_code_and_does_no_harm(
    layers: TappedShortcuts, second: DirectTpm, command: Callable[[int], bytes]
) -> None:
    codes, digests = [], []
    for exchange in (layers, second):
        handle = handle_in(exchange(start_sequence()))
        assert code_of(exchange(update_sequence(handle, b"abc", b"\0"))) == 0
        codes.append(exchange(command(handle)))
        digests.append(digest_in(exchange(complete_sequence(handle))))
    assert codes[0] == codes[1]
    assert code_of(codes[0]) != 0
    assert digests == [hashlib.sha256(b"abc").digest()] * 2
    assert layers.sent == []


def test_another_authorization_than_a_password_is_refused_not_ignored(layers: TappedShortcuts) -> None:
    handle = handle_in(layers(start_sequence()))
    session = with_password(commands.SEQUENCE_UPDATE, b"\0\1a", handles=(handle,), session=0x02000000)
    assert code_of(layers(session)) == 0x12F  # TPM_RC_AUTH_UNAVAILABLE
    damaged = bytearray(update_sequence(handle, b"a"))
    damaged[17] = 200  # the area's size
    assert code_of(layers(bytes(damaged))) == 0x12F
    assert digest_in(layers(complete_sequence(handle))) == hashlib.sha256().digest()


def test_a_sequence_that_has_ended_is_unknown_as_it_would_be_to_the_tpm(
    layers: TappedShortcuts, second: DirectTpm
) -> None:
    for end in (complete_sequence, flush):
        for exchange in (layers, second):
            handle = handle_in(exchange(start_sequence()))
            assert code_of(exchange(end(handle))) == 0
            assert code_of(exchange(update_sequence(handle, b"x"))) == 0x910  # TPM_RC_REFERENCE_H0
            assert code_of(exchange(flush(handle))) == 0x1CB  # TPM_RC_HANDLE, first parameter
    event = with_password(commands.EVENT_SEQUENCE_COMPLETE, sized(b""), handles=(NULL, handle))
    assert code_of(layers(event)) != 0
    assert "SEQUENCE_UPDATE" not in layers.sent


def test_another_command_about_a_sequence_is_refused_and_the_tpm_sees_no_virtual_handle(
    layers: TappedShortcuts,
) -> None:
    handle = handle_in(layers(start_sequence()))
    event = with_password(commands.EVENT_SEQUENCE_COMPLETE, sized(b""), handles=(NULL, handle))
    for command, code in ((event, 0x911), (read_public(handle), 0x910), (sign(handle, bytes(32), ECDSA), 0x910)):
        assert code_of(layers(command)) == code
    assert layers.sent == []
    assert digest_in(layers(complete_sequence(handle))) == hashlib.sha256().digest()


def test_many_sequences_at_once_do_not_mix(layers: TappedShortcuts) -> None:
    handles = [handle_in(layers(start_sequence())) for _ in range(SEQUENCE_LIMIT)]
    assert len(set(handles)) == SEQUENCE_LIMIT
    assert code_of(layers(start_sequence())) == 0x902  # TPM_RC_OBJECT_MEMORY
    for number, handle in enumerate(handles):
        layers(update_sequence(handle, str(number).encode()))
    for number, handle in enumerate(handles):
        assert digest_in(layers(complete_sequence(handle))) == hashlib.sha256(str(number).encode()).digest()
    assert layers.sent == []
    handle_in(layers(start_sequence()))


def test_a_sequence_can_be_copied_as_openssl_does_it(layers: TappedShortcuts) -> None:
    first = handle_in(layers(start_sequence(SHA384)))
    layers(update_sequence(first, b"one "))
    context = parameters_in(layers(simple_command(commands.CONTEXT_SAVE, handles=(first,)))).rest()
    layers(update_sequence(first, b"two"))
    copy = handle_in(layers(simple_command(commands.CONTEXT_LOAD, context)))
    again = handle_in(layers(simple_command(commands.CONTEXT_LOAD, context)))
    layers(update_sequence(copy, b"three"))
    assert len({first, copy, again}) == 3
    assert digest_in(layers(complete_sequence(first))) == hashlib.sha384(b"one two").digest()
    assert digest_in(layers(complete_sequence(copy))) == hashlib.sha384(b"one three").digest()
    assert digest_in(layers(complete_sequence(again))) == hashlib.sha384(b"one ").digest()
    assert layers.sent == []


def test_a_context_that_is_not_ours_or_too_old_is_the_tpms_to_refuse(layers: TappedShortcuts) -> None:
    handle = handle_in(layers(start_sequence()))
    save = simple_command(commands.CONTEXT_SAVE, handles=(handle,))
    oldest = parameters_in(layers(save)).rest()
    for _ in range(CONTEXT_LIMIT):
        newest = parameters_in(layers(save)).rest()
    assert code_of(layers(simple_command(commands.CONTEXT_LOAD, newest))) == 0
    assert layers.sent == []
    for context in (oldest, newest[:-1] + b"?", b"", newest[:-1]):
        assert code_of(layers(simple_command(commands.CONTEXT_LOAD, context))) != 0
    assert layers.sent == ["CONTEXT_LOAD"] * 4


def test_what_is_not_plain_goes_to_the_tpm(layers: TappedShortcuts) -> None:
    for command in (
        hash_command(bytes(1025)),
        hash_command(b"", 0x0012),  # SM3, which this TPM lacks
        hash_command(b"", 0x0010),
        hash_command(b"", SHA256, ENDORSEMENT),  # may be switched off
        hash_command(b"", SHA256, PLATFORM),
        hash_command(b"", SHA256, 0x40000002),
        hash_command(b"x")[:-1],
        hash_command(b"x") + b"x",
        start_sequence(0x0010),  # an event sequence
        start_sequence(0x0012),
        start_sequence(SHA256, b"secret"),
        start_sequence() + b"x",
        with_password(commands.HASH_SEQUENCE_START, bytes.fromhex("0000000b"), handles=()),
        simple_command(commands.HASH),
    ):
        fixed = HEADER.pack(HEADER.unpack_from(command)[0], len(command), code_of(command)) + command[HEADER.size :]
        assert layers.sent_for(fixed) in (["HASH"], ["HASH_SEQUENCE_START"])


def test_a_real_sequence_goes_on_in_the_tpm(layers: TappedShortcuts) -> None:
    handle = handle_in(layers(start_sequence(SHA256, b"secret")))
    assert code_of(layers(update_sequence(handle, b"abc", b"wrong"))) == 0x9A2
    assert code_of(layers(update_sequence(handle, b"abc", b"secret"))) == 0
    complete = sized(b"") + OWNER.to_bytes(4, "big")
    response = layers(with_password(commands.SEQUENCE_COMPLETE, complete, handles=(handle,), password=b"secret"))
    assert digest_in(response) == hashlib.sha256(b"abc").digest()


def test_sequences_are_the_tpms_while_a_session_is_open_that_could_authorize_them(layers: TappedShortcuts) -> None:
    session = handle_in(layers(START_HMAC_SESSION))
    sequence = handle_in(layers(start_sequence()))
    assert layers.sent[-1] == "HASH_SEQUENCE_START"
    layers(flush(sequence))
    assert layers.sent_for(hash_command(b"")) == []
    layers(flush(session))
    assert layers.sent_for(start_sequence()) == []


def test_before_a_signing_key_is_known_the_tpm_makes_digests(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path)
    with shortcuts_before(tpm) as layers:
        assert layers.sent_for(hash_command(b"")) == ["HASH"]
        layers(read_public(SRK))
        assert layers.sent_for(hash_command(b"")) == ["HASH"]  # the SRK does not sign
        key = handle_in(layers(load(tmp_path, "ecc-p256-0")))
        assert layers.sent_for(hash_command(b"")) == []
        layers(flush(key))
        assert layers.sent_for(hash_command(b"")) == ["HASH"]


def test_a_program_that_did_not_ask_for_the_algorithms_gets_no_software(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path, handle=0x81000100)
    layers = TappedShortcuts(tpm, None, FIRST)
    layers(read_public(0x81000100))
    assert layers.sent_for(hash_command(b"")) == ["HASH"]
    layers(PROPERTIES)
    layers(ALGORITHMS)
    assert layers.sent_for(hash_command(b"")) == []


def _restricted_key(tpm: SimulatedTpm, folder: Path) -> None:
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
    algorithm = ("-G", "ecc256:ecdsa-sha256:null", "-a", attributes)
    tpm.tool("tpm2_create", "-C", f"{SRK:#x}", *algorithm, "-u", "ak.pub", "-r", "ak.priv", cwd=folder)


def test_a_restricted_key_on_the_connection_sends_every_digest_to_the_tpm(
    tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path
) -> None:
    _restricted_key(tpm, tmp_path)
    restricted = handle_in(layers(load(tmp_path, "ak")))
    assert layers.sent_for(start_sequence()) == ["HASH_SEQUENCE_START"]
    reader = parameters_in(layers(hash_command(b"message")))
    digest, ticket = reader.sized(), reader.rest()
    assert ticket != NULL_TICKET
    assert code_of(layers(sign(restricted, digest, ECDSA, ticket=ticket))) == 0
    layers(flush(restricted))
    assert layers.sent_for(hash_command(b"")) == []


def test_a_restricted_key_refuses_a_null_ticket_and_is_then_known_to_need_more(
    tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path
) -> None:
    """A persistent key that the program uses without ever asking what it is."""
    _restricted_key(tpm, tmp_path)
    tpm.tool("tpm2_flushcontext", "-t")
    tpm.tool("tpm2_load", "-C", f"{SRK:#x}", "-u", "ak.pub", "-r", "ak.priv", "-c", "ak.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "ak.ctx", "0x81000200", cwd=tmp_path)
    tpm.tool("tpm2_flushcontext", "-t")
    handle_in(layers(load(tmp_path, "ecc-p256-0")))
    digest = digest_in(layers(hash_command(b"message")))
    assert code_of(layers(sign(0x81000200, digest, ECDSA))) == 0x3E0  # TPM_RC_TICKET, third parameter
    reader = parameters_in(layers(hash_command(b"message")))
    assert code_of(layers(sign(0x81000200, reader.sized(), ECDSA, ticket=reader.rest()))) == 0


@pytest.mark.parametrize(("algorithm", "scheme"), [("ecc-p256", ECDSA), ("rsa-2048", RSASSA), ("rsa-2048", RSAPSS)])
def test_an_unrestricted_key_signs_a_digest_with_a_null_ticket(
    tpm: SimulatedTpm, tmp_path: Path, algorithm: str, scheme: int
) -> None:
    """TPM 2.0 Library part 3, 20.2: the ticket is checked for restricted keys only."""
    key = make_key(tpm, tmp_path, algorithm)
    with shortcuts_before(tpm) as layers:
        handle = handle_in(layers(load(tmp_path, f"{algorithm}-0")))
        digest = digest_in(layers(hash_command(b"message")))
        signature = parameters_in(layers(sign(handle, digest, scheme)))
    assert signature.take(4) == scheme.to_bytes(2, "big") + SHA256.to_bytes(2, "big")
    if isinstance(key.public_key, RSAPublicKey):
        padded = padding.PKCS1v15() if scheme == RSASSA else padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        key.public_key.verify(signature.sized(), b"message", padded, hashes.SHA256())
    else:
        assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
        r, s = (int.from_bytes(signature.sized(), "big") for _ in range(2))
        key.public_key.verify(utils.encode_dss_signature(r, s), b"message", ec.ECDSA(hashes.SHA256()))


def test_the_list_of_transient_objects_has_the_sequences_too(layers: TappedShortcuts) -> None:
    (key,) = handles_in(layers(get_capability(1, 0x80000000, 254)))
    first, second = (handle_in(layers(start_sequence())) for _ in range(2))
    assert handles_in(layers(get_capability(1, 0x80000000, 254))) == [key, first, second]
    assert handles_in(layers(get_capability(1, first + 1, 254))) == [second]
    cut = layers(get_capability(1, 0x80000000, 2))
    assert (handles_in(cut), cut[HEADER.size]) == ([key, first], 1)
    assert handles_in(layers(get_capability(1, 0x81000000, 254))) == [SRK]
    layers(flush(first))
    layers(complete_sequence(second))
    assert handles_in(layers(get_capability(1, 0x80000000, 254))) == [key]


@given(
    st.binary(max_size=60), st.sampled_from([0x8001, 0x8002]), st.sampled_from(sorted(vars(commands).values(), key=str))
)
def test_no_command_whatever_it_contains_raises(rest: bytes, tag: int, code: object) -> None:
    hashing = SoftwareHashing(VirtualHandles(Objects()), algorithms=lambda: frozenset(NAMES))
    started = hashing.begin(start_sequence())
    assert started is not None
    if not isinstance(code, int):
        return
    for handle in (b"", FIRST.to_bytes(4, "big")):
        command = HEADER.pack(tag, HEADER.size + len(handle + rest), code) + handle + rest
        for response in (
            hashing.begin(command) if code in {commands.HASH, commands.HASH_SEQUENCE_START} else None,
            hashing.go_on(command),
        ):
            assert response is None or HEADER.unpack_from(response)[1] == len(response)
    assert HEADER.unpack_from(started)[0] == NO_SESSIONS
