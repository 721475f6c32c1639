"""An agent on duty against a real backend: what a field engineer sees when something is done to the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.duty import Backend, duty_agent, enrolled_device, fleet_backend
from support.fleet import Device, FleetCa, fleet_ca

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetCa]:
    with fleet_ca(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def backend(ca: FleetCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with fleet_backend(ca, tmp_path_factory.mktemp("backend")) as running:
        yield running


@pytest.fixture
def device(make_tpm: Callable[..., SimulatedTpm], ca: FleetCa, tmp_path: Path) -> Device:
    return enrolled_device(make_tpm(ek_certificates=True), ca, tmp_path / "disk" / "identity")


def name_of(device: Device) -> str:
    return str(device.record()["device"])


def shown(backend: Backend, device: Device) -> dict[str, Any]:
    """What the operator sees of the device."""
    found: dict[str, Any] = backend.server("device", "show", name_of(device))
    return found


def test_trusted_then_refused_by_name_then_approved(device: Device, backend: Backend, tmp_path: Path) -> None:
    with duty_agent(device, tmp_path / "agent", "--backend", backend.url) as agent:
        agent.until(agent.verdict, "the first verdict")
        assert (agent.verdict()["trusted"], agent.verdict()["state"]) == (True, "attested")
        assert agent.health()["failures"] == []
        assert shown(backend, device)["state"] == "attested"

        device.tpm.tool("tpm2_pcrextend", "7:sha256=" + "ab" * 32)
        refused = agent.attested_again()
        assert (refused["trusted"], refused["check"], refused["state"]) == (False, 9, "failing")
        assert "7" in " ".join([refused["reason"], *refused["differences"]])
        assert agent.health()["failures"] == [], "what was booted is no failure of the TPM"
        assert agent.attested_again()["state"] == "failing"
        assert len([line for line in agent.log() if "does not trust what was booted" in line]) == 1

        backend.server("device", "approve", name_of(device))
        assert agent.attested_again()["trusted"]
        assert agent.end() == 0
