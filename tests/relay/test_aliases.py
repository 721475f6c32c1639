"""A key file's key that is also persistent is used at its persistent handle, and loaded when that would differ."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from support.shortcuts import TappedShortcuts, shortcuts_before
from support.tpm_commands import (
    ECDSA,
    NULL,
    NULL_TICKET,
    OWNER,
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
from support.tpm_keys import TpmKey, make_key
from support.tpm_trace import CommandTrace
from tpm_mtls.relay import relay_tcti
from tpm_mtls_relay.errors import KeyGoneError, MalformedCommandError
from tpm_mtls_relay.loaded.public_area import PublicArea
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.responses import refused, success, success_with_password
from tpm_mtls_relay.messages.wire import HEADER, SESSIONS, code_of, simple_command, tag_of
from tpm_mtls_relay.shortcuts.aliases import TRUST
from tpm_mtls_relay.shortcuts.persistent_keys import ABSENT_FOR, SEARCHED, name_if_interchangeable
from tpm_mtls_relay.shortcuts.virtual_handles import FIRST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

KEY = 0x81000100
DIGEST = hashlib.sha256(b"message").digest()
TRANSIENT = get_capability(1, 0x80000000, 254)
NAME = "ecc-p256-0"


def make_persistent(tpm: SimulatedTpm, folder: Path, name: str = NAME, handle: int = KEY) -> None:
    """The key of the blobs ``name``, at ``handle`` as well."""
    tpm.tool("tpm2_load", "-C", f"{SRK:#x}", "-u", f"{name}.pub", "-r", f"{name}.priv", "-c", "k.ctx", cwd=folder)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "k.ctx", f"{handle:#x}", cwd=folder)
    tpm.tool("tpm2_flushcontext", "-t")


def evict(tpm: SimulatedTpm, handle: int = KEY) -> None:
    """Removes the persistent key."""
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{handle:#x}")


def verify(response: bytes, key: TpmKey) -> None:
    """The response to `sign` is ``key``'s signature over `DIGEST`."""
    signature = parameters_in(response)
    assert signature.take(4) == bytes.fromhex("0018000b")
    r, s = (int.from_bytes(signature.sized(), "big") for _ in range(2))
    assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
    key.public_key.verify(utils.encode_dss_signature(r, s), b"message", ec.ECDSA(hashes.SHA256()))


@pytest.fixture
def key(tpm: SimulatedTpm, tmp_path: Path) -> TpmKey:
    """A key in a file that is persistent, too."""
    made = make_key(tpm, tmp_path)
    make_persistent(tpm, tmp_path)
    return made


@pytest.fixture
def layers(tpm: SimulatedTpm, key: TpmKey) -> Iterator[TappedShortcuts]:
    """The layers before the TPM that has it."""
    assert key
    with shortcuts_before(tpm) as made:
        yield made


def test_the_load_is_answered_as_the_tpm_would_and_nothing_is_loaded(
    tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path
) -> None:
    ours = layers(load(tmp_path, NAME))
    assert "LOAD" not in layers.sent
    tpms = DirectTpm(tpm)(load(tmp_path, NAME))
    assert tag_of(ours) == tag_of(tpms) == SESSIONS
    assert ours[14:] == tpms[14:]  # all but the handle: the Name, and the answer to the password
    assert handle_in(ours) == FIRST
    assert len(tpm.handles("transient")) == 1  # the one that was loaded for comparison
    tpm.flush()


def test_it_signs_with_one_command_each_and_its_unloading_is_no_command(
    layers: TappedShortcuts, key: TpmKey, tmp_path: Path
) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    layers.sent.clear()
    for _ in range(3):
        verify(layers(sign(handle, DIGEST, ECDSA)), key)
    assert layers.sent == ["SIGN"] * 3
    assert layers.sent_for(hash_command(b"message")) == []
    assert parameters_in(layers(read_public(handle))).sized() == parameters_in(layers(read_public(KEY))).sized()
    layers.sent.clear()
    assert code_of(layers(flush(handle))) == 0
    assert layers.sent == []
    assert code_of(layers(sign(handle, DIGEST, ECDSA))) == 0x910  # TPM_RC_REFERENCE_H0: nothing is there
    assert layers.sent == []


def test_the_key_is_looked_for_once(layers: TappedShortcuts, tmp_path: Path) -> None:
    assert layers.sent_for(load(tmp_path, NAME))[0] == "GET_CAPABILITY"
    assert layers.sent_for(load(tmp_path, NAME)) == []


def test_two_copies_are_two_handles(layers: TappedShortcuts, key: TpmKey, tmp_path: Path) -> None:
    first, second = (handle_in(layers(load(tmp_path, NAME))) for _ in range(2))
    assert first != second
    layers(flush(first))
    verify(layers(sign(second, DIGEST, ECDSA)), key)


def test_another_key_is_loaded(tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path) -> None:
    other = make_key(tpm, tmp_path)
    handle = handle_in(layers(load(tmp_path, "ecc-p256-1")))
    assert layers.sent[-1] == "LOAD"
    verify(layers(sign(handle, DIGEST, ECDSA)), other)
    layers(flush(handle))
    assert layers.sent_for(load(tmp_path, "ecc-p256-1")) == ["LOAD"]


@pytest.mark.parametrize(
    "attributes",
    [
        "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign",  # its file may have another password
        "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign|restricted",  # an attestation key
        "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt",
    ],
)
def test_a_key_of_which_two_copies_may_differ_is_loaded(tpm: SimulatedTpm, tmp_path: Path, attributes: str) -> None:
    make_key(tpm, tmp_path)
    scheme = ":ecdsa-sha256" if "sign" in attributes else ":ecdh"
    kind = ("-G", f"ecc256{scheme}:null", "-a", attributes, "-u", "k.pub", "-r", "k.priv")
    tpm.tool("tpm2_create", "-C", f"{SRK:#x}", *kind, cwd=tmp_path)
    make_persistent(tpm, tmp_path, "k")
    with shortcuts_before(tpm) as layers:
        assert layers.sent_for(load(tmp_path, "k")) == ["LOAD"]


def test_names_are_computed_for_asymmetric_signing_keys_only() -> None:
    def area(kind: int, name_algorithm: int, attributes: int) -> PublicArea:
        return PublicArea(
            kind.to_bytes(2, "big") + name_algorithm.to_bytes(2, "big") + attributes.to_bytes(4, "big") + b"\0\0"
        )

    free = 1 << 18 | 1 << 10
    for kind, size in ((0x0001, 34), (0x0023, 34)):
        assert len(name_if_interchangeable(area(kind, 0x000B, free))) == size
    assert len(name_if_interchangeable(area(0x0001, 0x000C, free))) == 50
    for kind, name_algorithm, attributes in (
        (0x0008, 0x000B, free),
        (0x0025, 0x000B, free),
        (0x0001, 0x0010, free),
        (0x0001, 0x000B, 1 << 18),
        (0x0001, 0x000B, 1 << 10),
        (0x0001, 0x000B, free | 1 << 16),
    ):
        assert name_if_interchangeable(area(kind, name_algorithm, attributes)) == b""


def test_a_load_that_is_not_plain_is_the_tpms(layers: TappedShortcuts, tmp_path: Path) -> None:
    plain = load(tmp_path, NAME)
    blobs = plain[27:]
    for command in (
        simple_command(commands.LOAD, blobs, handles=(SRK,)),
        with_password(commands.LOAD, blobs + b"x", handles=(SRK,)),
        with_password(commands.LOAD, blobs[:-1], handles=(SRK,)),
        with_password(commands.LOAD, b"", handles=(SRK,)),
        with_password(commands.LOAD, blobs, handles=(SRK,), session=0x02000000),
    ):
        assert layers.sent_for(command) == ["LOAD"]
        assert code_of(layers(command)) != 0


def test_it_is_loaded_to_be_saved(tpm: SimulatedTpm, layers: TappedShortcuts, key: TpmKey, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    layers.sent.clear()
    context = parameters_in(layers(simple_command(commands.CONTEXT_SAVE, handles=(handle,)))).rest()
    assert layers.sent == ["LOAD", "CONTEXT_SAVE"]
    verify(layers(sign(handle, DIGEST, ECDSA)), key)
    assert layers.sent_for(flush(handle)) == ["FLUSH_CONTEXT"]
    assert tpm.handles("transient") == []
    restored = handle_in(layers(simple_command(commands.CONTEXT_LOAD, context)))
    verify(layers(sign(restored, DIGEST, ECDSA)), key)


def test_to_make_it_persistent_elsewhere_does_not_remove_it(
    tpm: SimulatedTpm, layers: TappedShortcuts, key: TpmKey, tmp_path: Path
) -> None:
    """With a persistent object's handle, TPM2_EvictControl would remove that object."""
    handle = handle_in(layers(load(tmp_path, NAME)))
    for target, code in ((KEY, 0x14C), (KEY + 1, 0)):  # 0x14C: TPM_RC_NV_DEFINED
        evict_control = with_password(commands.EVICT_CONTROL, target.to_bytes(4, "big"), handles=(OWNER, handle))
        assert code_of(layers(evict_control)) == code
    verify(layers(sign(handle, DIGEST, ECDSA)), key)
    layers(flush(handle))
    assert tpm.handles("persistent") == [hex(SRK), hex(KEY), hex(KEY + 1)]


def test_a_key_that_is_removed_meanwhile_is_loaded(
    tpm: SimulatedTpm, layers: TappedShortcuts, key: TpmKey, tmp_path: Path
) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    evict(tpm)
    layers.sent.clear()
    verify(layers(sign(handle, DIGEST, ECDSA)), key)
    assert layers.sent == ["SIGN", "LOAD", "SIGN"]
    verify(layers(sign(handle, DIGEST, ECDSA)), key)
    assert layers.sent[-2:] == ["SIGN", "SIGN"]
    layers(flush(handle))
    assert tpm.handles("transient") == []


def test_a_key_that_is_replaced_meanwhile_is_found_out(
    tpm: SimulatedTpm, layers: TappedShortcuts, key: TpmKey, tmp_path: Path
) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    evict(tpm)
    make_key(tpm, tmp_path, handle=KEY)
    layers.time += TRUST + 1
    layers.sent.clear()
    verify(layers(sign(handle, DIGEST, ECDSA)), key)
    assert layers.sent == ["READ_PUBLIC", "LOAD", "SIGN"]


def test_one_that_stays_is_asked_for_every_ten_minutes(layers: TappedShortcuts, key: TpmKey, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    layers.time += TRUST - 1
    assert layers.sent_for(sign(handle, DIGEST, ECDSA)) == ["SIGN"]
    layers.time += 2
    assert layers.sent_for(sign(handle, DIGEST, ECDSA)) == ["READ_PUBLIC", "SIGN"]
    assert layers.sent_for(sign(handle, DIGEST, ECDSA)) == ["SIGN"]
    verify(layers(sign(handle, DIGEST, ECDSA)), key)


def test_what_the_program_itself_replaces_is_asked_for_at_once(
    tpm: SimulatedTpm, layers: TappedShortcuts, key: TpmKey, tmp_path: Path
) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    make_key(tpm, tmp_path)
    other = handle_in(layers(load(tmp_path, "ecc-p256-1")))
    for which in (KEY, other):  # removes the one, makes the other persistent
        command = with_password(commands.EVICT_CONTROL, KEY.to_bytes(4, "big"), handles=(OWNER, which))
        assert code_of(layers(command)) == 0
    verify(layers(sign(handle, DIGEST, ECDSA)), key)
    layers(flush(handle))
    assert layers.sent_for(load(tmp_path, NAME))[-1] == "LOAD"


def test_a_key_that_is_gone_for_good_is_said_to_be(tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    tpm.tool("tpm2_clear", "-c", "p")
    with pytest.raises(KeyGoneError, match="0x81000100 is gone, and its file does not load"):
        layers(sign(handle, DIGEST, ECDSA))
    assert code_of(layers(flush(handle))) == 0


def test_a_tpm_that_is_full_is_said_to_be_full(tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    evict(tpm)
    make_key(tpm, tmp_path)
    others = [handle_in(layers(load(tmp_path, "ecc-p256-1"))) for _ in range(2)]  # the third slot is for the parent
    assert code_of(layers(sign(handle, DIGEST, ECDSA))) == 0x902  # TPM_RC_OBJECT_MEMORY
    layers(flush(others.pop()))
    assert code_of(layers(sign(handle, DIGEST, ECDSA))) == 0


def test_it_certifies_and_is_certified_as_the_persistent_key(
    tpm: SimulatedTpm, layers: TappedShortcuts, tmp_path: Path
) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    area = bytes.fromhex("4000000900000000004000000900000000 00".replace(" ", ""))
    parameters = sized(b"") + bytes.fromhex("0018000b")
    body = handle.to_bytes(4, "big") * 2 + len(area).to_bytes(4, "big") + area + parameters
    certify = HEADER.pack(SESSIONS, HEADER.size + len(body), commands.CERTIFY) + body
    layers.sent.clear()
    assert code_of(layers(certify)) == 0
    assert layers.sent == ["CERTIFY"]
    evict(tpm)
    assert code_of(layers(certify)) == 0
    assert layers.sent == ["CERTIFY", "CERTIFY", "LOAD", "CERTIFY"]


def test_a_wrong_password_is_the_programs_affair(layers: TappedShortcuts, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    layers.sent.clear()
    assert code_of(layers(sign(handle, DIGEST, ECDSA, password=b"wrong"))) == 0x9A2
    assert layers.sent == ["SIGN"]


def test_the_list_of_transient_objects_has_it(layers: TappedShortcuts, tmp_path: Path) -> None:
    handle = handle_in(layers(load(tmp_path, NAME)))
    assert handles_in(layers(TRANSIENT)) == [handle]
    layers(simple_command(commands.CONTEXT_SAVE, handles=(handle,)))  # it is loaded
    assert handles_in(layers(TRANSIENT)) == [handle]
    layers(flush(handle))
    assert handles_in(layers(TRANSIENT)) == []


def test_what_is_loaded_in_the_end_is_flushed(tpm: SimulatedTpm, key: TpmKey, tmp_path: Path) -> None:
    assert key
    with shortcuts_before(tpm) as layers:
        handle = handle_in(layers(load(tmp_path, NAME)))
        layers(simple_command(commands.CONTEXT_SAVE, handles=(handle,)))
        assert len(tpm.handles("transient")) == 1
    assert tpm.handles("transient") == []


def test_no_two_objects_have_one_handle_whatever_numbers_the_tpm_gives(
    tpm: SimulatedTpm, key: TpmKey, tmp_path: Path
) -> None:
    """Here the virtual handles begin where this TPM's own do."""
    other = make_key(tpm, tmp_path)
    with shortcuts_before(tpm, first=0x80000000) as layers:
        alias = handle_in(layers(load(tmp_path, NAME)))
        real = handle_in(layers(load(tmp_path, "ecc-p256-1")))
        sequence = handle_in(layers(start_sequence()))
        event = handle_in(layers(start_sequence(0x0010)))
        made = [alias, real, sequence, event]
        assert len(set(made)) == len(made)
        assert sorted(made) == handles_in(layers(TRANSIENT))
        verify(layers(sign(alias, DIGEST, ECDSA)), key)
        verify(layers(sign(real, DIGEST, ECDSA)), other)
        layers(update_sequence(sequence, b"abc"))
        assert digest_in(layers(complete_sequence(sequence))) == hashlib.sha256(b"abc").digest()
        assert code_of(layers(update_sequence(event, b"abc"))) == 0
        complete = with_password(commands.SEQUENCE_COMPLETE, sized(b"") + NULL.to_bytes(4, "big"), handles=(event,))
        assert code_of(layers(complete)) != 0  # an event sequence needs another command
        for handle in (alias, event, real):
            assert code_of(layers(flush(handle))) == 0
        assert handles_in(layers(TRANSIENT)) == []


def test_a_real_sequence_under_another_number_ends_with_its_digest(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path)
    make_persistent(tpm, tmp_path)
    with shortcuts_before(tpm, first=0x80000000) as layers:
        handle_in(layers(load(tmp_path, NAME)))
        sequence = handle_in(layers(start_sequence(authorization=b"secret")))
        parameters = sized(b"abc") + NULL.to_bytes(4, "big")
        complete = with_password(commands.SEQUENCE_COMPLETE, parameters, handles=(sequence,), password=b"secret")
        assert digest_in(layers(complete)) == hashlib.sha256(b"abc").digest()
        assert sequence not in handles_in(layers(TRANSIENT))


def test_at_most_sixteen_persistent_keys_are_looked_at(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path)
    make_persistent(tpm, tmp_path)
    with shortcuts_before(tpm) as layers:
        layers.sent.clear()
        layers(load(tmp_path, NAME))
        assert len(layers.sent) <= SEARCHED + 1


def test_the_next_program_asks_for_the_key_where_it_was(tpm: SimulatedTpm, key: TpmKey, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with shortcuts_before(tpm, folder=private) as layers:
        layers(load(tmp_path, NAME))
    with shortcuts_before(tpm, folder=private) as layers:
        assert layers.sent_for(load(tmp_path, NAME)) == ["READ_PUBLIC"]
    evict(tpm)
    make_persistent(tpm, tmp_path, handle=KEY + 7)
    with shortcuts_before(tpm, folder=private) as layers:
        layers(load(tmp_path, NAME))
        assert "LOAD" not in layers.sent
        verify(layers(sign(FIRST, DIGEST, ECDSA)), key)
    with shortcuts_before(tpm, folder=private) as layers:
        assert layers.sent_for(load(tmp_path, NAME)) == ["READ_PUBLIC"]


def test_a_key_that_was_not_persistent_is_not_searched_for_again_for_an_hour(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with shortcuts_before(tpm, folder=private) as layers:
        assert "GET_CAPABILITY" in layers.sent_for(load(tmp_path, NAME))
    make_persistent(tpm, tmp_path)
    with shortcuts_before(tpm, folder=private) as layers:
        assert layers.sent_for(load(tmp_path, NAME)) == ["LOAD"]
    with shortcuts_before(tpm, folder=private) as layers:
        layers.time += ABSENT_FOR + 1
        assert "LOAD" not in layers.sent_for(load(tmp_path, NAME))


def test_making_a_key_persistent_through_the_relay_is_noticed(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_key(tpm, tmp_path)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with shortcuts_before(tpm, folder=private) as layers:
        handle = handle_in(layers(load(tmp_path, NAME)))
        command = with_password(commands.EVICT_CONTROL, KEY.to_bytes(4, "big"), handles=(OWNER, handle))
        assert code_of(layers(command)) == 0
    with shortcuts_before(tpm, folder=private) as layers:
        assert "LOAD" not in layers.sent_for(load(tmp_path, NAME))


def test_a_command_that_is_too_short_is_the_tpms_to_refuse(layers: TappedShortcuts, tmp_path: Path) -> None:
    layers(load(tmp_path, NAME))
    for code in (commands.FLUSH_CONTEXT, commands.SIGN):
        short = HEADER.pack(0x8001, HEADER.size + 2, code) + b"\0\0"
        with contextlib.suppress(MalformedCommandError):
            assert code_of(layers(short)) != 0


@pytest.mark.parametrize(
    "answer",
    [
        refused(0x922),  # TPM_RC_RETRY, once too often
        success(b"\0"),
        success(bytes.fromhex("00 00000001 00000003 81000100")),
        success_with_password(bytes(9)),
    ],
)
def test_a_tpm_that_does_not_list_its_keys_gets_the_load(
    layers: TappedShortcuts, key: TpmKey, tmp_path: Path, answer: bytes
) -> None:
    layers.lies[commands.GET_CAPABILITY] = answer
    handle = handle_in(layers(load(tmp_path, NAME)))
    assert layers.sent[-1] == "LOAD"
    verify(layers(sign(handle, DIGEST, ECDSA)), key)


@pytest.mark.parametrize("answer", [refused(0x922), success(b"\0"), success(b"\0\x10" + bytes(40))])
def test_a_tpm_that_does_not_describe_a_key_gets_the_load(
    layers: TappedShortcuts, key: TpmKey, tmp_path: Path, answer: bytes
) -> None:
    layers.lies[commands.READ_PUBLIC] = answer
    handle = handle_in(layers(load(tmp_path, NAME)))
    assert layers.sent[-1] == "LOAD"
    verify(layers(sign(handle, DIGEST, ECDSA)), key)


def test_a_program_with_hmac_sessions_uses_aliases_and_sequences_as_ever(
    tpm: SimulatedTpm, key: TpmKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's HMAC is over the key's Name, which is the same, not over its handle."""
    from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_SE, TPM2B_PRIVATE, TPM2B_PUBLIC, TPMT_SYM_DEF
    from tpm2_pytss.types import TPM2B_DIGEST, TPMT_SIG_SCHEME, TPMT_TK_HASHCHECK

    private = TPM2B_PRIVATE.unmarshal((tmp_path / f"{NAME}.priv").read_bytes())[0]
    public = TPM2B_PUBLIC.unmarshal((tmp_path / f"{NAME}.pub").read_bytes())[0]
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with ESAPI(relay_tcti(trace.tcti)) as ectx:
        ectx.get_capability(TPM2_CAP.ALGS, 0, 100)
        loaded = ectx.load(ectx.tr_from_tpmpublic(SRK), private, public)
        symmetric = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        session = ectx.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, symmetric, TPM2_ALG.SHA256)
        sequence = ectx.hash_sequence_start(None, TPM2_ALG.SHA256)
        ectx.sequence_update(sequence, b"message", session1=session)
        digest, _ = ectx.sequence_complete(sequence, None, session1=session)
        assert bytes(digest) == DIGEST
        ticket = TPMT_TK_HASHCHECK.unmarshal(NULL_TICKET)[0]
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.ECDSA)
        scheme.details.any.hashAlg = TPM2_ALG.SHA256
        signature = ectx.sign(loaded, TPM2B_DIGEST(DIGEST), scheme, ticket, session1=session)
        ectx.flush_context(session)
        ectx.flush_context(loaded)
    assert "Load" not in trace.commands()
    assert {"HashSequenceStart", "SequenceUpdate", "SequenceComplete", "Sign"} < set(trace.commands())
    ecdsa = signature.signature.ecdsa
    r, s = (int.from_bytes(bytes(part), "big") for part in (ecdsa.signatureR, ecdsa.signatureS))
    assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
    key.public_key.verify(utils.encode_dss_signature(r, s), b"message", ec.ECDSA(hashes.SHA256()))
