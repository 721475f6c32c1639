"""Salted sessions: only with the storage root key that is expected, and nothing of them is left in the TPM."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tpm2_pytss.constants import ESYS_TR

from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import (
    AuthorizationError,
    HandleOccupiedError,
    StorageRootKeyChangedError,
    TpmMemoryError,
    TpmMtlsError,
    TpmRefusedError,
)
from tpm_mtls.structures import NvAttribute, NvPublic
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm import Tpm

DATA = b"the launch code is 0000"
VALUE = Secret(b"an authorization value")
INDEX = NvPublic(0x01520000, 64, NvAttribute.AUTHREAD | NvAttribute.AUTHWRITE | NvAttribute.NO_DA)
START, CREATE, NV_READ, UNSEAL = 0x176, 0x153, 0x14E, 0x15E


@pytest.fixture
def srk(tpm: SimulatedTpm) -> PublicArea:
    """The storage root key of `tpm`."""
    with open_tpm(tpm.tcti) as opened:
        return opened.srk.ensure()


def replace_srk(tpm: SimulatedTpm, folder: Path, *, clear: bool = True) -> None:
    """Clears the TPM, or only takes its storage root key away, and puts another one in its place."""
    if clear:
        tpm.tool("tpm2_clear", "-c", "p")
    else:
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{SRK_HANDLE:#x}")
    tpm.tool("tpm2_createprimary", "-C", "o", "-g", "sha256", "-G", "ecc384", "-c", "p.ctx", cwd=folder)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", f"{SRK_HANDLE:#x}", cwd=folder)
    tpm.flush()


def test_the_expected_key_is_used(tpm: SimulatedTpm, srk: PublicArea) -> None:
    with open_tpm(tpm.tcti, expected_srk_name=srk.name) as opened:
        assert opened.sealing.unseal(opened.sealing.seal(DATA)) == DATA


def uses(opened: Tpm) -> list[Callable[[], object]]:
    """Everything that would send a secret."""
    return [
        lambda: opened.sealing.seal(DATA, authorization=VALUE),
        lambda: opened.nv_secrets.define(INDEX, VALUE),
        lambda: opened.nv_secrets.write(INDEX, DATA, authorization=VALUE),
        lambda: opened.nv_secrets.read(INDEX, authorization=VALUE),
        lambda: opened.nv_secrets.undefine(INDEX),
    ]


@pytest.mark.parametrize("number", range(5))
def test_with_another_key_nothing_is_sent(
    tpm: SimulatedTpm, srk: PublicArea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    expected = srk.name[:-1] + bytes([srk.name[-1] ^ 1])
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with (
        open_tpm(trace.tcti, expected_srk_name=expected) as opened,
        pytest.raises(StorageRootKeyChangedError, match=r"storage root key is not .*: it is .* now") as refusal,
    ):
        uses(opened)[number]()
    assert (refusal.value.expected, refusal.value.found) == (expected, srk.name)
    assert "cleared or exchanged" in refusal.value.hint
    assert trace.commands() == ["ReadPublic"]


def test_without_the_expected_key_none_is_made(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with (
        open_tpm(trace.tcti, expected_srk_name=b"\x00\x0b" + bytes(32)) as opened,
        pytest.raises(StorageRootKeyChangedError, match="there is none now") as refusal,
    ):
        opened.sealing.seal(DATA)
    assert refusal.value.found is None
    assert trace.commands() == ["ReadPublic=0x18b"]
    assert tpm.handles("persistent") == []


def test_where_no_key_is_expected_it_is_made_and_stays_the_one(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.sealing.seal(DATA)
        srk = opened.srk.read()
        assert srk is not None
        assert opened.sessions.expected == srk.name
        replace_srk(tpm, tmp_path)
        with pytest.raises(StorageRootKeyChangedError) as refusal:
            opened.sealing.seal(DATA)
        assert refusal.value.expected == srk.name
        with pytest.raises(StorageRootKeyChangedError):
            opened.sealing.seal(DATA)


def test_a_key_known_from_before_spares_the_command_that_reads_it(
    tpm: SimulatedTpm, srk: PublicArea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti, expected_srk_name=srk.name) as opened:
        opened.srk.assume(srk)
        opened.sealing.seal(DATA)
    assert trace.commands() == ["StartAuthSession", "Create"]


@pytest.mark.parametrize("clear", [True, False])
def test_that_a_key_known_from_before_was_replaced_is_noticed(
    tpm: SimulatedTpm, srk: PublicArea, tmp_path: Path, *, clear: bool
) -> None:
    """The session was salted to the old key: only who has that could read what was sent."""
    with open_tpm(tpm.tcti) as opened:
        sealed = opened.sealing.seal(DATA)
        made = opened.nv_secrets.write(opened.nv_secrets.define(INDEX, VALUE), DATA, authorization=VALUE)
    replace_srk(tpm, tmp_path, clear=clear)
    for use in (
        lambda opened: opened.sealing.seal(DATA),
        lambda opened: opened.sealing.unseal(sealed),
        lambda opened: opened.nv_secrets.read(made, authorization=VALUE),
        lambda opened: opened.nv_secrets.write(made, DATA, authorization=VALUE),
    ):
        with open_tpm(tpm.tcti, expected_srk_name=srk.name) as opened:
            opened.srk.assume(srk)
            with pytest.raises(StorageRootKeyChangedError) as refusal:
                use(opened)
            assert refusal.value.expected == srk.name


def test_that_the_key_is_gone_is_noticed(tpm: SimulatedTpm, srk: PublicArea) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.sealing.seal(DATA)
        tpm.tool("tpm2_clear", "-c", "p")
        with pytest.raises(StorageRootKeyChangedError, match="there is none now") as refusal:
            opened.sealing.seal(DATA)
    assert (refusal.value.expected, refusal.value.found) == (srk.name, None)


def test_what_spares_commands_is_what_libtss2_itself_would_have_made(tpm: SimulatedTpm, srk: PublicArea) -> None:
    """Its form of a serialized object is not documented; where it changes, this is the first to notice."""
    with open_tpm(tpm.tcti) as opened:
        made = opened.nv_secrets.define(INDEX, VALUE)
        context, resources = opened._context, opened._resources
        for handle, ours in (
            (SRK_HANDLE, resources.refer_key(SRK_HANDLE, srk)),
            (INDEX.index, resources.refer_nv(made)),
        ):
            serialized = bytes(context.tr_serialize(ESYS_TR(ours)))
            context.tr_close(ESYS_TR(ours))
            theirs = context.tr_from_tpmpublic(handle)
            assert serialized == bytes(context.tr_serialize(theirs))
            context.tr_close(theirs)


def test_an_rsa_storage_root_key_does_as_well(tpm: SimulatedTpm, tmp_path: Path) -> None:
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "rsa2048", "-c", "p.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", f"{SRK_HANDLE:#x}", cwd=tmp_path)
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        assert opened.sealing.unseal(opened.sealing.seal(DATA)) == DATA


def test_what_is_no_storage_key_is_refused(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_attestation_key()
        opened.remove_persistent(SRK_HANDLE)
        opened.persist(key, SRK_HANDLE)
    with open_tpm(tpm.tcti) as opened, pytest.raises(HandleOccupiedError, match="occupied by something else"):
        opened.sealing.seal(DATA)


def test_a_storage_root_key_with_a_password_is_authorized_unseen(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = Secret(b"password of the SRK")
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-p", "password of the SRK", "-c", "p.ctx", cwd=tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", f"{SRK_HANDLE:#x}", cwd=tmp_path)
    tpm.flush()
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti, srk_authorization=password) as opened:
        sealed = opened.sealing.seal(DATA)
        assert opened.sealing.unseal(sealed) == DATA
    assert password.value not in trace.captured()
    assert [each for each in trace.commands() if "=0x922" not in each] == [
        *("ReadPublic", "StartAuthSession", "Create"),
        *("StartAuthSession", "Load", "StartAuthSession", "Unseal", "FlushContext"),
    ]

    uses: list[tuple[Secret | None, Callable[[Tpm], object]]] = [
        (None, lambda opened: opened.sealing.unseal(sealed)),
        (Secret(b"wrong"), lambda opened: opened.sealing.seal(DATA)),
    ]
    for wrong, use in uses:
        with open_tpm(tpm.tcti, srk_authorization=wrong) as opened, pytest.raises(AuthorizationError) as refusal:
            use(opened)
        assert "--srk-auth" in refusal.value.hint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", [START, CREATE])
def test_an_interrupt_leaves_nothing(
    tpm: SimulatedTpm, srk: PublicArea, tmp_path: Path, number: signal.Signals, command: int
) -> None:
    """The fixture looks for what is left."""
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(command, number)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), open_tpm(proxy.tcti, expected_srk_name=srk.name) as opened:
            opened.sealing.seal(DATA)
    finally:
        signal.signal(number, before)


def test_that_no_session_slot_is_free_is_told_as_such(tpm: SimulatedTpm, srk: PublicArea, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(START, 0x903)
    with (
        open_tpm(proxy.tcti, expected_srk_name=srk.name) as opened,
        pytest.raises(TpmMemoryError, match="session slots are exhausted") as refusal,
    ):
        opened.sealing.seal(DATA)
    assert refusal.value.rc == 0x903


@pytest.mark.parametrize("position", [20, -1])
def test_an_answer_that_is_not_the_tpm_s_is_refused(
    tpm: SimulatedTpm, srk: PublicArea, tmp_path: Path, position: int
) -> None:
    """A bit of the encrypted content, or of the HMAC, was changed on its way; the TPM itself has ended the session."""
    with open_tpm(tpm.tcti) as opened:
        made = opened.nv_secrets.write(opened.nv_secrets.define(INDEX, VALUE), DATA, authorization=VALUE)
    proxy = TpmProxy(tpm, tmp_path)
    proxy.spoil(NV_READ, position)
    with (
        pytest.raises(TpmRefusedError, match="the answer is not the TPM's") as refusal,
        open_tpm(proxy.tcti, expected_srk_name=srk.name) as opened,
    ):
        opened.nv_secrets.read(made, authorization=VALUE)
    assert refusal.value.rc == 0x7001B


def test_a_forged_answer_to_unsealing_is_told_first(tpm: SimulatedTpm, srk: PublicArea, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        sealed = opened.sealing.seal(DATA)
    proxy = TpmProxy(tpm, tmp_path)
    proxy.spoil(UNSEAL, -1)
    with (
        pytest.raises(TpmRefusedError, match="the answer is not the TPM's"),
        open_tpm(proxy.tcti, expected_srk_name=srk.name) as opened,
    ):
        opened.sealing.unseal(sealed)
    tpm.flush()  # libtss2 sends nothing more after an answer that it cannot trust


def test_hundred_uses_of_one_connection_leave_nothing_behind(tpm: SimulatedTpm, srk: PublicArea) -> None:
    with open_tpm(tpm.tcti, expected_srk_name=srk.name) as opened:
        made = opened.nv_secrets.write(opened.nv_secrets.define(INDEX, VALUE), DATA, authorization=VALUE)
        for _ in range(100):
            assert opened.nv_secrets.read(made, len(DATA), authorization=VALUE) == DATA
        with pytest.raises(TpmMtlsError):
            opened.nv_secrets.read(made, authorization=Secret(b"wrong"))
        tpm.assert_nothing_leaked()
