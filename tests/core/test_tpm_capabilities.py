"""What a TPM says about itself, compared with what tpm2-tools read, and with what was done to it before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.tpm_trace import CommandTrace
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import AuthorizationError, TpmRefusedError
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.attestation.health import Condition


def condition(tpm: SimulatedTpm) -> Condition:
    with open_tpm(tpm.tcti) as opened:
        return opened.capabilities.condition()


def by_tools(tpm: SimulatedTpm) -> dict[str, int]:
    """The variable properties as tpm2-tools print them."""
    lines = tpm.tool("tpm2_getcap", "properties-variable").stdout.splitlines()
    pairs = [line.partition(":")[::2] for line in lines if line.startswith("TPM2_PT_")]
    return {name: int(value, 16) for name, value in pairs if value.strip()}


def test_the_counters_are_those_that_tpm2_tools_read(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "srk.ctx", cwd=tpm.simulator.folder)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001", cwd=tpm.simulator.folder)
    tpm.tool("tpm2_nvdefine", "0x1500020", "-C", "o", "-s", "8", "-a", "ownerread|ownerwrite|nt=counter")
    tpm.flush()
    found, expected = condition(tpm), by_tools(tpm)
    names = {
        "nv_indices": "HR_NV_INDEX",
        "sessions_loaded": "HR_LOADED",
        "sessions_available": "HR_LOADED_AVAIL",
        "sessions_active": "HR_ACTIVE",
        "sessions_active_available": "HR_ACTIVE_AVAIL",
        "transient_available": "HR_TRANSIENT_AVAIL",
        "persistent": "HR_PERSISTENT",
        "persistent_available": "HR_PERSISTENT_AVAIL",
        "nv_counters": "NV_COUNTERS",
        "nv_counters_available": "NV_COUNTERS_AVAIL",
        "lockout_counter": "LOCKOUT_COUNTER",
        "lockout_limit": "MAX_AUTH_FAIL",
        "lockout_interval": "LOCKOUT_INTERVAL",
        "lockout_recovery": "LOCKOUT_RECOVERY",
    }
    assert {name: getattr(found, name) for name in names} == {
        name: expected[f"TPM2_PT_{theirs}"] for name, theirs in names.items()
    }
    assert (found.persistent, found.nv_counters, found.transient_loaded, found.locked_out) == (1, 1, 0, False)
    assert (found.vendor, found.self_test) == ("IBM", "passed")
    with open_tpm(tpm.tcti) as opened:
        assert opened.facts().firmware == found.firmware


def test_it_costs_four_commands_and_none_writes(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    with open_tpm(trace.tcti) as opened:
        opened.capabilities.condition()
    assert trace.commands() == ["GetTestResult", "GetCapability", "GetCapability", "GetCapability"]


def test_lockout_is_seen(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_dictionarylockout", "--setup-parameters", "-n", "2", "-t", "100", "-l", "200")
    before = condition(tpm)
    with open_tpm(tpm.tcti) as opened:
        key = opened.srk.create_key(KeyAlgorithm.ECC_P256, authorization=Secret(b"right"))
        with opened.load(SRK_HANDLE, key.public, key.private, Secret(b"wrong")) as wrong:
            for _ in range(2):
                with pytest.raises(AuthorizationError):
                    opened.sign(wrong, bytes(32), hash_name="sha256")
    after = condition(tpm)
    assert (before.lockout_counter, before.locked_out) == (0, False)
    assert (after.lockout_counter, after.locked_out, after.lockout_limit) == (2, True, 2)
    assert (after.lockout_interval, after.lockout_recovery) == (100, 200)


def test_objects_that_a_killed_program_left_are_counted(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "srk.ctx", cwd=tpm.simulator.folder)
    assert condition(tpm).transient_loaded == 1
    tpm.flush()
    assert condition(tpm).transient_loaded == 0


class _Listing:
    """ESAPI's answer to a GetCapability."""

    def __init__(self, kind: str, items: list[Any]) -> None:
        self.data = type("Data", (), {kind: self})
        self.count, self._items = len(items), items

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - a handle or a property
        return self._items[index]


class _Talkative:
    """An ESAPI of a TPM that always says that there is more, and never gives it."""

    def get_capability(self, capability: object, first: int, _: int) -> tuple[bool, Any]:
        kind = "handles" if int(capability) == 1 else "tpmProperties"  # type: ignore[call-overload]  # TPM2_CAP
        return True, _Listing(kind, [first] if kind == "handles" and first < 0x80000002 else [])


def test_a_tpm_that_promises_more_and_never_gives_it_does_not_keep_the_agent_busy(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        capabilities = opened.capabilities
        capabilities._context = _Talkative()  # type: ignore[assignment]  # what it uses of one
        assert capabilities.transient_handles() == (0x80000000, 0x80000001)
        assert capabilities.fixed() == {}


def test_a_tpm_that_withholds_a_property_is_named(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tpm(tpm.tcti) as opened:
        monkeypatch.setattr(opened.capabilities, "variable", dict)
        with pytest.raises(TpmRefusedError, match="does not say its property 0x202"):
            opened.capabilities.condition()
