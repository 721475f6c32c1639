"""An agent on duty against a real backend: what a field engineer sees when something is done to the device."""

from __future__ import annotations

import base64
import shutil
import socket
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support.duty import Backend, duty_agent, enrolled_device, fleet_backend
from support.fleet import Device, FleetCa, fleet_ca
from support.https_server import HttpsServer
from support.wrong_clock import WrongClock
from tpm_mtls.doctor.diagnosis import Settings, diagnose
from tpm_mtls.doctor.servers import backend_peer
from tpm_mtls.errors import AgentRefusedError, SimulatorError
from tpm_mtls.structures import ek_hash, parse_public_area

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
        seen = shown(backend, device)
        assert (seen["state"], seen["certificate"]["is_tpm"]) == ("attested", True)
        assert device.certificate().startswith(seen["certificate_pem"].encode())
        public = base64.b64decode(seen["endorsement_key"])
        assert int.from_bytes(public[:2], "big") == len(public) - 2
        assert ek_hash(parse_public_area(public[2:]).spki or b"") == seen["tpm"]

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

    where = Settings(tcti=device.tpm.tcti, folder=device.folder, peers=(backend_peer(backend.url + "/health"),))
    found = diagnose(where, now=lambda: datetime.now(UTC))
    assert found.problems == []
    assert {each.check for each in found.findings if each.level == "ok"} >= {"network.ca", "network.backend"}


def test_a_tpm_that_vanishes_and_comes_back(device: Device, backend: Backend, tmp_path: Path) -> None:
    """Killed and started again under the running agent: maintenance mode within one check, and out of it by itself."""
    with duty_agent(device, tmp_path / "agent", "--backend", backend.url) as agent:
        agent.secrets.set("key", "value")
        agent.until(agent.verdict, "the first verdict")
        device.tpm.stop()
        assert agent.failures() == ["TpmUnavailable"]
        assert agent.maintenance().startswith("TpmUnavailable: ")
        with pytest.raises(AgentRefusedError):
            agent.secrets.get("key")

        device.tpm.simulator.start()
        assert agent.next_verdict(agent.failures)["trusted"]
        assert agent.maintenance() == ""
        assert agent.secrets.get("key") == "value"
        assert agent.duties()["life_cycle"] == "restarted"
        words = ("maintenance mode begins", "maintenance mode ends", "the TPM was restarted")
        assert [sum(word in line for line in agent.log()) for word in words] == [1, 1, 1]


def test_a_tpm_that_is_wiped_ends_the_identity_and_nothing_is_enrolled(
    device: Device, backend: Backend, ca: FleetCa, tmp_path: Path
) -> None:
    with duty_agent(device, tmp_path / "agent", "--backend", backend.url) as agent:
        agent.until(agent.verdict, "the first verdict")
        before, issued = device.certificate(), len(ca.issued())
        device.tpm.tool("tpm2_clear", "-c", "p")
        assert agent.failures()[0] == "TpmCleared"
        agent.until(lambda: agent.duties()["life_cycle"] == "cleared", "the judgement")
        assert agent.duties()["life_cycle_text"] == "the TPM was cleared"
        assert any("release the device at the CA" in line for line in agent.log())
        assert (device.certificate(), len(ca.issued())) == (before, issued)


def test_a_tpm_that_is_replaced_is_another_device(
    device: Device, backend: Backend, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    other = make_tpm(ek_certificates=True)
    other.stop()
    with duty_agent(device, tmp_path / "agent", "--backend", backend.url) as agent:
        agent.until(agent.verdict, "the first verdict")
        verdicts = agent.duties()["attestations"]
        device.tpm.stop()
        shutil.rmtree(device.tpm.simulator.state)
        shutil.copytree(other.simulator.state, device.tpm.simulator.state)
        device.tpm.simulator.start()

        assert agent.failures()[0] == "TpmSwapped"
        agent.until(lambda: agent.duties()["life_cycle"] == "swapped", "the judgement")
        assert any("it was replaced" in line for line in agent.log())
        assert agent.duties()["attestations"] == verdicts, "it shows nobody's quotes for the device"
        assert "0x81000001" not in device.tpm.handles("persistent"), "it makes no keys there"


def test_a_damaged_tpm_is_unavailable_until_it_is_repaired(device: Device, backend: Backend, tmp_path: Path) -> None:
    with duty_agent(device, tmp_path / "agent", "--backend", backend.url) as agent:
        agent.until(agent.verdict, "the first verdict")
        device.tpm.stop()
        [state] = [each for each in device.tpm.simulator.state.iterdir() if each.suffix == ".permall"]
        whole = state.read_bytes()
        state.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SimulatorError):
            device.tpm.simulator.start()
        assert agent.failures() == ["TpmUnavailable"]

        state.write_bytes(whole)
        device.tpm.simulator.start()
        assert agent.failures() == []
        assert agent.maintenance() == ""


def test_a_backend_that_is_not_there_is_told_once_and_found_again(device: Device, ca: FleetCa, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--backend", f"https://localhost:{port}", "--interval", "1s")
    with duty_agent(device, tmp_path / "agent", *options) as agent:
        agent.until(lambda: (agent.duties().get("backend") or {}).get("error"), "the failure")
        agent.secrets.set("key", "value")
        time.sleep(4)  # some checks, and some attempts
        lines = [line for line in agent.log() if "backend" in line]
        assert len(lines) == 1, agent.log()
        assert f"the backend at https://localhost:{port} cannot be reached: connection refused" in lines[0]

        with fleet_backend(ca, tmp_path / "backend", "--listen", f"127.0.0.1:{port}"):
            agent.until(agent.verdict, "the verdict")
        assert any("the exchange with the backend works again" in line for line in agent.log())


def test_secrets_do_not_wait_for_a_backend_that_says_nothing(device: Device, tmp_path: Path) -> None:
    with (
        HttpsServer(None, silent=True) as silent,
        duty_agent(device, tmp_path / "agent", "--backend", f"https://localhost:{silent.port}") as agent,
    ):
        agent.until(lambda: silent.connections, "the request")
        begun = time.monotonic()
        agent.secrets.set("key", "value")
        assert agent.secrets.get("key") == "value"
        assert time.monotonic() - begun < 5
        assert (agent.end(), silent.connections) == (0, 1)  # and its child ends with it


def test_a_wrong_clock_is_named_and_passes_when_it_is_set_right(
    device: Device, backend: Backend, tmp_path: Path
) -> None:
    clock = WrongClock(tmp_path / "clock")
    clock.set(timedelta(days=-3650))
    options = ("--backend", backend.url)
    with duty_agent(device, tmp_path / "agent", *options, environment=clock.environment) as agent:
        agent.until(lambda: (agent.duties().get("backend") or {}).get("error"), "the failure")
        assert "this machine's clock says" in agent.duties()["backend"]["error"]
        assert "clock" in agent.duties()["backend"]["hint"]
        assert len([line for line in agent.log() if "clock" in line]) == 1
        clock.set(timedelta())
        assert agent.attested_again()["trusted"]


def test_a_certificate_is_renewed_when_it_is_due_and_what_follows_is_run(
    device: Device, ca: FleetCa, tmp_path: Path
) -> None:
    clock, told, issued = WrongClock(tmp_path / "clock"), tmp_path / "told", len(ca.issued())
    clock.set(timedelta())
    follows = f"""sh -c 'echo "$TPM_MTLS_STATE_DIR" >> {told}'"""
    options = ("--on-renewal", follows)
    with duty_agent(device, tmp_path / "agent", *options, environment=clock.environment) as agent:
        assert agent.failures() == []
        agent.until(lambda: agent.duties().get("renews_at"), "the plan")
        before = device.certificate()
        clock.set(timedelta(days=64))
        agent.ask()
        agent.until(told.exists, "the renewal")
        assert device.certificate() != before
        assert agent.failures() == []
        clock.set(timedelta())
    assert told.read_text() == f"{device.folder}\n"
    assert len(ca.issued()) == issued + 1, "not again, although the clock still says so"


def test_a_certificate_file_that_is_gone_comes_back(device: Device, backend: Backend, tmp_path: Path) -> None:
    before = device.certificate()
    (device.folder / "device.cert.pem").unlink()
    with duty_agent(device, tmp_path / "agent", "--backend", backend.url) as agent:
        agent.until(agent.verdict, "the first verdict")
        assert agent.verdict()["trusted"]
        assert device.certificate() == before
        assert any("restored from the TPM's NV memory" in line for line in agent.log())
        assert not any("maintenance mode" in line for line in agent.log())
