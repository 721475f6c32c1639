"""The TPM's hierarchies: what is set, that values are told right from wrong, and that none crosses the bus."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from support.power_cut import TpmTap
from tpm_mtls.authorization import SealedFile, Secret, read_hierarchy_authorization
from tpm_mtls.errors import (
    AuthorizationError,
    PemError,
    StorageError,
    StorageRootKeyChangedError,
    TpmLockoutError,
    TpmRefusedError,
    UsageError,
)
from tpm_mtls.structures import EkTemplate
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls.tpm.hierarchies import EMPTY, Hierarchy, LockoutParameters, hierarchy_state
from tpm_mtls.tpm.sealed_authorization import seal_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.tpm import Tpm

VALUE = Secret(b"right horse")


@pytest.fixture
def opened(tpm: SimulatedTpm) -> Iterator[Tpm]:
    with open_tpm(tpm.tcti) as opened:
        yield opened


def sealed(tpm: Tpm, path: Path, value: Secret = VALUE) -> Path:
    path.write_bytes(seal_value(tpm, value))
    path.chmod(0o600)
    return path


def test_a_state_is_read_bit_by_bit() -> None:
    """TPM 2.0 Library part 2, 8.6 and 8.7."""
    state = hierarchy_state({0x200: 0b10_0000_0101, 0x201: 0b1, 0x20F: 4, 0x210: 5, 0x211: 6})

    assert state.has_authorization == {Hierarchy.OWNER, Hierarchy.LOCKOUT}
    assert (state.locked_out, state.clear_disabled, state.platform_enabled) == (True, False, True)
    assert state.lockout == LockoutParameters(4, 5, 6)
    assert hierarchy_state({0x200: 1 << 8}).clear_disabled
    assert not hierarchy_state({}).platform_enabled


@pytest.mark.parametrize("with_srk", [False, True])
@pytest.mark.parametrize("hierarchy", [Hierarchy.OWNER, Hierarchy.ENDORSEMENT, Hierarchy.PLATFORM])
def test_a_right_value_is_told_from_a_wrong_one(opened: Tpm, hierarchy: Hierarchy, *, with_srk: bool) -> None:
    if with_srk:
        opened.srk.ensure()
    assert opened.hierarchies.accepts(hierarchy, EMPTY)
    assert not opened.hierarchies.accepts(hierarchy, VALUE)

    opened.hierarchies.change_authorization(hierarchy, VALUE)

    assert not opened.hierarchies.accepts(hierarchy, EMPTY)
    assert not opened.hierarchies.accepts(hierarchy, Secret(b"wrong horse"))
    assert opened.hierarchies.accepts(hierarchy, VALUE)
    assert opened.capabilities.condition().lockout_counter == 0  # wrong ones do not count


def test_a_new_value_is_what_other_tools_need(tpm: SimulatedTpm, opened: Tpm) -> None:
    opened.srk.ensure()
    opened.hierarchies.change_authorization(Hierarchy.OWNER, VALUE)

    assert opened.hierarchies.state().has_authorization == {Hierarchy.OWNER}
    define = ("tpm2_nvdefine", "0x1800001", "-C", "o", "-s", "8")
    assert tpm.tool(*define, check=False).returncode != 0
    tpm.tool(*define, "-P", VALUE.value.decode())


@pytest.mark.parametrize("hierarchy", [Hierarchy.OWNER, Hierarchy.ENDORSEMENT])
def test_another_value_in_use_is_refused(tpm: SimulatedTpm, opened: Tpm, hierarchy: Hierarchy) -> None:
    opened.srk.ensure()
    tpm.tool("tpm2_changeauth", "-c", hierarchy.value, "else")

    with pytest.raises(AuthorizationError, match=f"change the {hierarchy.value} authorization") as refused:
        opened.hierarchies.change_authorization(hierarchy, VALUE)

    assert refused.value.hint.endswith(f"--{hierarchy.value}-auth prompt, file:F, credential:NAME or sealed:F")


def test_a_wrong_lockout_authorization_locks_it(tpm: SimulatedTpm, opened: Tpm) -> None:
    """Part 1, 19.8.2: one is enough; so nothing here tries one without need."""
    tpm.tool("tpm2_changeauth", "-c", "lockout", "else")
    parameters = LockoutParameters(5, 600, 86400)
    with pytest.raises(AuthorizationError, match="set the parameters"):
        opened.hierarchies.set_lockout_parameters(parameters)

    opened.hierarchies.authorize(Hierarchy.LOCKOUT, Secret(b"else"))
    with pytest.raises(TpmLockoutError):
        opened.hierarchies.set_lockout_parameters(parameters)


def test_lockout_parameters_are_set(tpm: SimulatedTpm, opened: Tpm) -> None:
    opened.hierarchies.set_lockout_parameters(LockoutParameters(5, 600, 86400))

    assert opened.hierarchies.state().lockout == LockoutParameters(5, 600, 86400)
    shown = tpm.tool("tpm2_getcap", "properties-variable").stdout
    assert "TPM2_PT_LOCKOUT_RECOVERY: 0x15180" in shown


def test_the_platform_is_disabled_until_the_restart(make_tpm: Callable[..., SimulatedTpm]) -> None:
    tpm = make_tpm(ek_certificates=True)
    with open_tpm(tpm.tcti) as opened:
        opened.hierarchies.disable_platform()
        assert not opened.hierarchies.state().platform_enabled
        assert opened.endorsement.certificate(opened.endorsement.certified()[0])  # the platform's NV stays readable
    assert tpm.tool("tpm2_clear", "-c", "p", check=False).returncode != 0

    tpm.restart()
    with open_tpm(tpm.tcti) as opened:
        assert opened.hierarchies.state().platform_enabled
        opened.hierarchies.change_authorization(Hierarchy.PLATFORM, VALUE)
        opened.hierarchies.authorize(Hierarchy.PLATFORM, EMPTY)
        with pytest.raises(AuthorizationError, match="disable the platform hierarchy"):
            opened.hierarchies.disable_platform()


def test_clearing_needs_the_lockout_authorization(tpm: SimulatedTpm, opened: Tpm) -> None:
    name = opened.srk.ensure().name
    for hierarchy in (Hierarchy.OWNER, Hierarchy.ENDORSEMENT, Hierarchy.LOCKOUT):
        opened.hierarchies.change_authorization(hierarchy, VALUE)

    opened.hierarchies.clear()

    assert opened.hierarchies.state().has_authorization == frozenset()
    assert opened.srk.read() is None
    assert opened.srk.ensure().name != name
    assert opened.hierarchies.accepts(Hierarchy.OWNER, EMPTY)
    tpm.tool("tpm2_clearcontrol", "-C", "l", "s")
    with pytest.raises(TpmRefusedError, match="clear the TPM"):
        opened.hierarchies.clear()


def test_endorsement_keys_are_kept_at_their_handles(tpm: SimulatedTpm, opened: Tpm) -> None:
    """Registry of Reserved TPM 2.0 Handles and Localities 1.1, table 2."""
    assert opened.endorsement.persisted() == frozenset()

    opened.endorsement.persist(EkTemplate.ECC_P256)

    assert tpm.handles("persistent") == ["0x81010002"]
    assert opened.endorsement.persisted() == {EkTemplate.ECC_P256}


def test_no_value_crosses_the_bus(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    relay = TpmTap._relay

    def watched(self: TpmTap, program: object, target: object, is_data: bool) -> None:  # noqa: FBT001 - the tap's
        relay(self, _Recorder(program, seen), _Recorder(target, seen), is_data)  # type: ignore[arg-type]  # a socket's part that is used

    monkeypatch.setattr(TpmTap, "_relay", watched)
    with TpmTap(tpm.tcti) as tap, open_tpm(tap.tcti) as opened:
        opened.srk.ensure()
        opened.hierarchies.change_authorization(Hierarchy.OWNER, VALUE)
        assert opened.hierarchies.accepts(Hierarchy.OWNER, VALUE)
        opened.hierarchies.change_authorization(Hierarchy.OWNER, Secret(b"another one"))
        sealed(opened, tmp_path / "owner.sealed")

    traffic = b"".join(seen)
    assert b"\x00\x00\x01\x29" in traffic  # TPM_CC_HierarchyChangeAuth
    assert VALUE.value not in traffic
    assert b"another one" not in traffic
    assert set(salts_of_hmac_sessions(traffic)) == {SRK_HANDLE}  # else who listens could try words against the HMACs


def salts_of_hmac_sessions(traffic: bytes) -> Iterator[int]:
    """The key that each HMAC session is salted to: TPM2_StartAuthSession, part 3 rev 1.59, 11.1."""
    for found in re.finditer(rb"\x00\x00\x01\x76(?P<key>.{4}).{4}", traffic, re.DOTALL):
        nonce, rest = sized(traffic[found.end() :])
        salt, rest = sized(rest)
        if rest[0] == 0:  # TPM_SE_HMAC; a trial session shows nothing
            assert nonce
            assert bool(salt) == (found["key"] != bytes.fromhex("40000007"))
            yield int.from_bytes(found["key"], "big")


def sized(data: bytes) -> tuple[bytes, bytes]:
    """A TPM2B's content, and what follows it."""
    end = 2 + int.from_bytes(data[:2], "big")
    return data[2:end], data[end:]


class _Recorder:
    def __init__(self, connection: object, seen: list[bytes]) -> None:
        self._connection = connection
        self._seen = seen

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def sendall(self, data: bytes) -> None:
        self._seen.append(data)
        self._connection.sendall(data)  # type: ignore[attr-defined]  # a socket


def test_a_sealed_value_opens_the_hierarchy(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        source = f"sealed:{sealed(opened, tmp_path / 'owner.sealed')}"
        opened.hierarchies.change_authorization(Hierarchy.OWNER, VALUE)
        opened.hierarchies.change_authorization(Hierarchy.ENDORSEMENT, VALUE)
    given = read_hierarchy_authorization(source)
    assert given == SealedFile(tmp_path / "owner.sealed")
    assert VALUE.value.decode() not in repr(given)

    with open_tpm(tpm.tcti, owner_authorization=given, endorsement_authorization=given) as opened:
        opened.nv.define(0x01800001, 8)
        opened.endorsement.persist(EkTemplate.ECC_P256)
    with pytest.raises(AuthorizationError), open_tpm(tpm.tcti) as opened:
        opened.nv.define(0x01800002, 8)


def test_a_sealed_value_of_a_cleared_tpm_is_refused(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        path = sealed(opened, tmp_path / "owner.sealed")
        opened.hierarchies.clear()
    with pytest.raises(StorageRootKeyChangedError, match="there is none now"):
        use(tpm, path)
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    with pytest.raises(StorageRootKeyChangedError, match="it is 000b"):
        use(tpm, path)


@pytest.mark.parametrize("size", [33, 200])
def test_what_is_too_long_is_no_sealed_authorization(tpm: SimulatedTpm, tmp_path: Path, size: int) -> None:
    with open_tpm(tpm.tcti) as opened:
        data = Secret(b"x" * min(size, 128))
        path = sealed(opened, tmp_path / "owner.sealed", data)
    with pytest.raises(PemError, match="no authorization value"):
        use(tpm, path)


def test_a_sealed_file_is_private(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        path = sealed(opened, tmp_path / "owner.sealed")
    path.chmod(0o640)
    with pytest.raises(StorageError, match="can be read by other users"):
        read_hierarchy_authorization(f"sealed:{path}")
    with pytest.raises(StorageError, match="can be read by other users"):
        use(tpm, path)
    with pytest.raises(StorageError, match="no such file"):
        read_hierarchy_authorization(f"sealed:{tmp_path / 'none'}")
    with pytest.raises(UsageError, match="must be given as"):
        read_hierarchy_authorization("sealed:")


def use(tpm: SimulatedTpm, path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_tpm(tpm.tcti, owner_authorization=SealedFile(path)))


def test_nothing_is_left_where_a_sealed_value_cannot_be_had(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """The fixture looks for leaked sessions; here nothing else is made either."""
    path = tmp_path / "owner.sealed"
    path.write_text("no blob")
    path.chmod(0o600)
    with pytest.raises(PemError, match="no usable sealed data"):
        use(tpm, path)
    assert tpm.handles("persistent") == []
    assert f"{SRK_HANDLE:#x}" not in tpm.handles("persistent")
