"""Tracking: the relay knows what is loaded, and leaves nothing behind."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.tpm_commands import (
    NULL,
    OWNER,
    SHA256,
    SRK,
    complete_sequence,
    flush,
    handle_in,
    load,
    read_public,
    sized,
    start_sequence,
    with_password,
)
from support.tpm_keys import make_key, make_srk
from tpm_mtls_relay import errors
from tpm_mtls_relay.connection.opening import open_transport
from tpm_mtls_relay.errors import KeyGoneError, TransportError, UnreadableError
from tpm_mtls_relay.layers import Layers
from tpm_mtls_relay.loaded.objects import Objects, ask_public, key_at
from tpm_mtls_relay.loaded.public_area import ECC, RSA, PublicArea, template
from tpm_mtls_relay.loaded.tracking import Tracking
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, code_of, simple_command
from tpm_mtls_relay.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

ECC_TEMPLATE = bytes.fromhex("0023000b00040072000000100018000b000300100000 0000".replace(" ", ""))
SENSITIVE = bytes.fromhex("0004 0000 0000")
START_SESSION = simple_command(
    commands.START_AUTH_SESSION, sized(bytes(16)) + sized(b"") + bytes.fromhex("01 0010 000b"), handles=(NULL, NULL)
)


def create_primary() -> bytes:
    parameters = SENSITIVE + sized(ECC_TEMPLATE) + sized(b"") + bytes(4)
    return with_password(commands.CREATE_PRIMARY, parameters, handles=(OWNER,))


def create_loaded() -> bytes:
    return with_password(commands.CREATE_LOADED, SENSITIVE + sized(ECC_TEMPLATE), handles=(OWNER,))


@contextmanager
def tracked(tpm: SimulatedTpm) -> Iterator[Tracking]:
    """Only what tracks: no shortcuts, which would use a persistent key in place of a loaded one."""
    tracking = Tracking(open_transport(tpm.tcti))
    yield tracking
    tracking.close()


@pytest.fixture
def layers(tpm: SimulatedTpm) -> Iterator[Tracking]:
    with tracked(tpm) as tracking:
        yield tracking


def test_a_persistent_key_is_known_after_it_was_asked_for(tpm: SimulatedTpm, tmp_path: Path, layers: Tracking) -> None:
    make_key(tpm, tmp_path, handle=0x81000100)
    key = key_at(0x81000100, layers.objects, layers)
    assert key is not None
    assert key.signs
    assert not key.needs_policy
    assert not key.is_restricted
    assert layers.objects.get(0x81000100) is key
    assert layers.objects.keys() == {0x81000100: key}
    assert key_at(0x81000101, layers.objects, layers) is None
    assert key_at(0x01500000, layers.objects, layers) is None
    assert layers.objects.loaded == set()


@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_a_loaded_key_is_known_and_flushed_at_the_end(tpm: SimulatedTpm, tmp_path: Path, algorithm: str) -> None:
    make_key(tpm, tmp_path, algorithm)
    with tracked(tpm) as layers:
        handle = handle_in(layers(load(tmp_path, f"{algorithm}-0")))
        known = layers.objects.get(handle)
        assert known is not None
        assert layers.objects.loaded == {handle}
        asked = ask_public(handle, layers)
        assert asked is not None
        assert (asked.public, asked.name) == (known.public, known.name)
        assert known.type == (ECC if algorithm == "ecc-p256" else RSA)
        assert known.public.startswith(template(known.public))
        assert len(template(known.public)) == len(known.public) - (68 if algorithm == "ecc-p256" else 258)
        assert len(tpm.handles("transient")) == 1
    assert tpm.handles("transient") == []


@pytest.mark.parametrize("command", [create_primary(), create_loaded()], ids=["CreatePrimary", "CreateLoaded"])
def test_a_made_key_is_known_and_flushed_at_the_end(tpm: SimulatedTpm, command: bytes) -> None:
    with tracked(tpm) as layers:
        handle = handle_in(layers(command))
        known = layers.objects.get(handle)
        assert known is not None
        asked = ask_public(handle, layers)
        assert asked is not None
        assert (asked.public, asked.name) == (known.public, known.name)
        assert template(known.public) == ECC_TEMPLATE[:-4]
    assert tpm.handles("transient") == []


def test_what_the_program_flushes_is_forgotten(tpm: SimulatedTpm, layers: Tracking) -> None:
    handle = handle_in(layers(create_primary()))
    assert code_of(layers(flush(handle))) == 0
    assert layers.objects.loaded == set()
    assert layers.objects.get(handle) is None
    assert code_of(layers(flush(handle))) == 0x1CB  # TPM_RC_HANDLE: the TPM's own answer
    assert tpm.handles("transient") == []


def test_a_public_key_that_is_loaded_is_known(layers: Tracking) -> None:
    made = handle_in(layers(create_primary()))
    public = layers.objects.keys()[made].public
    public = public[:4] + (int.from_bytes(public[4:8], "big") & ~0x30).to_bytes(4, "big") + public[8:]
    answer = layers(simple_command(commands.LOAD_EXTERNAL, sized(b"") + sized(public) + OWNER.to_bytes(4, "big")))
    handle = handle_in(answer)
    assert layers.objects.loaded == {made, handle}
    assert layers.objects.keys()[handle].public == public


def test_a_session_is_flushed_at_the_end_unless_it_ended_or_was_saved(tpm: SimulatedTpm) -> None:
    with tracked(tpm) as layers:
        ended, left, saved = (handle_in(layers(START_SESSION)) for _ in range(3))
        assert layers.objects.loaded == {ended, left, saved}
        use = with_password(commands.READ_PUBLIC, handles=(SRK,), session=ended)
        assert code_of(layers(use)) != 0  # no SRK: refused, and the session lives on
        assert ended in layers.objects.loaded
        context = layers(simple_command(commands.CONTEXT_SAVE, handles=(saved,)))[HEADER.size :]
        assert layers.objects.loaded == {ended, left}
    assert tpm.handles("loaded-session") == []
    assert len(tpm.handles("saved-session")) == 1
    with tracked(tpm) as layers:
        assert handle_in(layers(simple_command(commands.CONTEXT_LOAD, context))) == saved
        assert layers.objects.loaded == {saved}
    assert tpm.handles("saved-session") == []


def test_a_session_that_its_command_ends_is_forgotten(tpm: SimulatedTpm, layers: Tracking) -> None:
    start = simple_command(
        commands.START_AUTH_SESSION, sized(bytes(16)) + sized(b"") + bytes.fromhex("00 0010 000b"), handles=(NULL, NULL)
    )
    session = handle_in(layers(start))
    audit = (
        session.to_bytes(4, "big") + sized(b"") + b"\x80" + sized(b"")  # an audit session without a key: an empty HMAC
    )
    parameters = b"\0\x08"
    size = HEADER.size + 4 + len(audit) + len(parameters)
    command = HEADER.pack(SESSIONS, size, commands.GET_RANDOM) + len(audit).to_bytes(4, "big") + audit + parameters
    if code_of(layers(command)) == 0:
        assert layers.objects.loaded == set()
        assert tpm.handles("loaded-session") == []
    else:
        assert layers.objects.loaded == {session}


def test_a_sequence_is_gone_when_it_is_complete(tpm: SimulatedTpm, layers: Tracking) -> None:
    left, complete = handle_in(layers(start_sequence())), handle_in(layers(start_sequence()))
    assert layers.objects.loaded == {left, complete}
    assert code_of(layers(complete_sequence(complete, b"data"))) == 0
    assert layers.objects.loaded == {left}
    assert len(tpm.handles("transient")) == 1


def test_an_evicted_key_is_not_known_any_more(tpm: SimulatedTpm, tmp_path: Path, layers: Tracking) -> None:
    make_key(tpm, tmp_path, handle=0x81000100)
    assert key_at(0x81000100, layers.objects, layers) is not None
    evict = with_password(commands.EVICT_CONTROL, (0x81000100).to_bytes(4, "big"), handles=(OWNER, 0x81000100))
    assert code_of(layers(evict)) == 0
    assert layers.objects.get(0x81000100) is None


def test_what_cannot_be_read_is_passed_on(tpm: SimulatedTpm) -> None:
    """The program must judge it, and the TPM."""
    load_without_end = simple_command(commands.LOAD, b"\xff\xff", handles=(SRK,))
    with tracked(tpm) as layers:
        assert code_of(layers(load_without_end)) not in {0, errors.MALFORMED_COMMAND}
    short = HEADER.pack(NO_SESSIONS, 12, 0) + b"ab"
    for command in (load_without_end, create_primary(), read_public(SRK), flush(SRK)[:11], START_SESSION):
        assert Tracking(lambda _: short)(command) == short


def test_the_public_area_is_not_learned_from_an_encrypted_response() -> None:
    """TPMA_SESSION.encrypt: the response's first parameter is for the program alone."""
    session = bytes.fromhex("02000000 0000 41 0000")
    for code, handle in ((commands.READ_PUBLIC, SRK), (commands.CREATE_PRIMARY, OWNER), (commands.LOAD, SRK)):
        body = handle.to_bytes(4, "big") + len(session).to_bytes(4, "big") + session + SENSITIVE + sized(ECC_TEMPLATE)
        command = HEADER.pack(SESSIONS, HEADER.size + len(body), code) + body
        response = HEADER.pack(SESSIONS, 18, 0) + 0x80000001.to_bytes(4, "big") + bytes(4)
        tracking = Tracking(lambda _, response=response: response)
        tracking(command)
        assert tracking.objects.keys() == {}


class Broken:
    """A TPM whose connection dies when it is asked for a certain command."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.dies = False

    def __call__(self, command: bytes) -> bytes:
        self.asked.append(code_of(command))
        if self.dies:
            raise TransportError("no TPM answers")
        handle = (0x80000000 + len(self.asked)).to_bytes(4, "big")
        return HEADER.pack(NO_SESSIONS, 14, 0) + handle


def test_a_tpm_that_is_gone_is_not_asked_to_flush_again_and_again() -> None:
    below = Broken()
    tracking = Tracking(below)
    for _ in range(3):
        tracking(start_sequence())
    below.dies = True
    tracking.close()
    assert below.asked.count(commands.FLUSH_CONTEXT) == 1


def test_flushing_what_went_with_a_connection_succeeds_without_the_tpm() -> None:
    below = Broken()
    tracking = Tracking(below)
    tracking(start_sequence())
    tracking.objects.connection_lost(raw=False)
    with pytest.raises(KeyGoneError, match="went with a connection"):
        tracking(complete_sequence(0x80000001))
    assert code_of(tracking(flush(0x80000001))) == 0
    assert code_of(tracking(flush(0x80000001))) == 0
    assert below.asked == [commands.HASH_SEQUENCE_START, commands.FLUSH_CONTEXT]


def test_what_became_somebody_elses_is_not_flushed_at_the_end() -> None:
    below = Broken()
    objects = Objects()
    objects.load(0x80000001)
    objects.learn(0x80000001, PublicArea(ECC_TEMPLATE, b"\0\x0bname"))
    objects.connection_lost(raw=True)
    Tracking(below, objects).close()
    assert below.asked == [commands.READ_PUBLIC]


@pytest.mark.parametrize(
    ("public", "message"),
    [
        ("0023000b0004007200", "announced"),
        ("1234000b000400720000", "no object's type: 0x1234"),
        ("0023000b00040072000100", "no digest"),
        ("0023ffff00040072000100", "no digest"),
    ],
)
def test_what_is_no_public_area_is_refused(public: str, message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        PublicArea(bytes.fromhex(public))


def test_a_kind_without_template_has_none() -> None:
    assert template(bytes.fromhex("0008000b000000000000 0010 0000")) == b""
    assert template(bytes.fromhex("0001000b000000000000 00060080 0043 0010 0800 00000000 0000"))[-10:] == bytes.fromhex(
        "0043 0010 0800 00000000"
    )


def test_nothing_is_known_of_a_tpm_that_is_not_there() -> None:
    layers = Layers(parse_options(["--tcti", "swtpm:host=127.0.0.1,port=1"]))
    with pytest.raises(TransportError, match=r"no TPM answers at 127\.0\.0\.1, port 1: Connection refused"):
        layers(create_primary())
    layers.close()


def test_the_name_algorithm_is_known(layers: Tracking, tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_srk(tpm, tmp_path)
    srk = key_at(SRK, layers.objects, layers)
    assert srk is not None
    assert srk.name_algorithm == SHA256
    assert srk.is_restricted
    assert not srk.signs
