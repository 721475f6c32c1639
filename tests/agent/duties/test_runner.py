"""The loop around the schedule, with a TPM and without a network: what is done, what is told, what goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from support.agent import MemoryStore
from support.healthy_device import Device
from tpm_mtls.attestation.messages import Challenge, DeviceState, HealthAnswer, Verdict
from tpm_mtls.device_requests import Answer, DeviceTransport, Request
from tpm_mtls.errors import PeerUnreachableError
from tpm_mtls.identity import ATTESTATION_KEY, CERTIFICATE, save_record
from tpm_mtls_agent.duties.backend import parse_backend
from tpm_mtls_agent.duties.checking import Checking
from tpm_mtls_agent.duties.record import load_duties
from tpm_mtls_agent.duties.runner import Duties
from tpm_mtls_agent.duties.schedule import Pace
from tpm_mtls_agent.duties.settings import DutySettings, Sources
from tpm_mtls_agent.worker import StoreWorker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls_agent.duties.record import DutiesRecord


class Network:
    """What the device's requests come to.

    Attributes:
        asked: their paths.
        verdicts: the next ones; then it trusts.
        wants: whether it wants a quote, the next times.
        gone: whether nobody answers.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.verdicts: list[Verdict] = []
        self.wants: list[bool] = []
        self.gone = False

    async def send(self, request: Request) -> Answer:
        self.asked.append(request.path)
        if self.gone:
            raise PeerUnreachableError("nobody answers", hint="look", host="backend.example")
        answers: dict[str, Callable[[], msgspec.Struct]] = {
            "/health": lambda: HealthAnswer(attest=self.wants.pop(0) if self.wants else False),
            "/attestation/nonce": lambda: Challenge(nonce=bytes(range(32)), lifetime=60),
            "/attestation": lambda: (
                self.verdicts.pop(0) if self.verdicts else Verdict(trusted=True, state=DeviceState.ATTESTED)
            ),
        }
        return Answer(200, "application/json", None, (), msgspec.json.encode(answers[request.path]()))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()

    async def send_async(_: DeviceTransport, request: Request) -> Answer:
        return await made.send(request)

    monkeypatch.setattr(DeviceTransport, "send_async", send_async)
    return made


@pytest.fixture
def device(tpm: SimulatedTpm, tmp_path: Path) -> Device:
    return Device(tpm, tmp_path)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "tpm_mtls_agent")
    return caplog


def settings_of(device: Device, **changes: Any) -> DutySettings:  # noqa: ANN401 - any setting
    chosen = {"backend": parse_backend("https://backend.example"), "renew": False} | changes
    return DutySettings(folder=device.folder, run_dir=device.run_dir, tcti=device.tpm.tcti, **chosen)


def work_until(settings: DutySettings, *steps: Callable[[Duties], bool]) -> DutiesRecord:
    """Does the duties until each step in turn holds, and then no more; returns what is shown of them."""

    async def run() -> None:
        worker = StoreWorker(MemoryStore().open)
        duties = Duties(settings, worker)
        working = asyncio.create_task(duties.work())
        try:
            for step in steps:
                async with asyncio.timeout(30):
                    while not step(duties):
                        await asyncio.sleep(0.01)
                        assert not working.done(), working.exception()
        finally:
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            await worker.close()

    asyncio.run(run())
    shown = load_duties(settings.run_dir)
    assert shown is not None
    return shown


def times(network: Network, path: str, count: int) -> Callable[[Duties], bool]:
    return lambda _: network.asked.count(path) >= count


def ask(duties: Duties) -> bool:
    duties.check_now()
    return True


def shown(settings: DutySettings, holds: Callable[[DutiesRecord], Any]) -> Callable[[Duties], bool]:
    def step(_: Duties) -> bool:
        record = load_duties(settings.run_dir)
        return record is not None and bool(holds(record))

    return step


def test_a_round_reports_and_attests(device: Device, network: Network, lines: pytest.LogCaptureFixture) -> None:
    settings = settings_of(device)
    record = work_until(settings, shown(settings, lambda record: record.verdict))
    assert network.asked == ["/health", "/attestation/nonce", "/attestation"]
    assert record.verdict is not None
    assert (record.verdict.trusted, record.attestations, record.life_cycle) == (True, 1, "same")
    assert record.backend is not None
    assert not record.backend.error
    assert lines.messages == ["the backend trusts what was booted (attested)"]


def test_when_a_round_is_over_is_shown_with_when_it_began(device: Device, network: Network) -> None:
    settings = settings_of(device)
    times = [time.monotonic()]

    def ask_later(duties: Duties) -> bool:
        network.gone = True
        times.append(time.monotonic())
        return ask(duties)

    over = shown(settings, lambda record: (record.round_began or 0) >= times[-1])
    record = work_until(settings, over, ask_later, over)
    assert record.backend is not None
    assert record.backend.error == "nobody answers", "what failed is over, too"


def test_the_backend_may_ask_for_a_quote(device: Device, network: Network) -> None:
    network.wants = [False, True]
    settings = settings_of(device, pace=Pace(interval=0.5, jitter=0.0))
    work_until(settings, times(network, "/attestation", 3))


def test_a_nonce_that_came_too_late_is_asked_for_again_soon(device: Device, network: Network) -> None:
    network.verdicts = [Verdict(trusted=False, check=1, reason="the nonce is too old", state=DeviceState.UNATTESTED)]
    settings = settings_of(device, pace=Pace(interval=0.1, longest=0.2))
    record = work_until(settings, shown(settings, lambda record: record.verdict and record.verdict.trusted))
    assert record.attestations >= 2


def test_what_is_asked_for_is_tried_at_once_whatever_failed_before(
    device: Device, network: Network, lines: pytest.LogCaptureFixture
) -> None:
    network.gone = True
    settings = settings_of(device)

    def comes_back(_: Duties) -> bool:
        network.gone = False
        return True

    record = work_until(
        settings,
        shown(settings, lambda record: record.backend and record.backend.error),
        comes_back,
        ask,
        shown(settings, lambda record: record.verdict),
    )
    assert record.backend is not None
    assert not record.backend.error
    assert lines.messages == [
        "nobody answers; look",
        "the exchange with the backend works again",
        "the backend trusts what was booted (attested)",
    ]


def test_a_device_without_an_attestation_key_shows_no_quotes_and_says_so_once(
    device: Device, network: Network, lines: pytest.LogCaptureFixture
) -> None:
    (device.folder / ATTESTATION_KEY).unlink()
    settings = settings_of(device, pace=Pace(interval=0.1))
    work_until(settings, times(network, "/health", 3))
    assert set(network.asked) == {"/health"}
    assert [line for line in lines.messages if "quotes" in line] == [
        "this device enrolled without an attestation key: it shows the backend no quotes"
    ]


def test_a_software_identity_reports_that_it_has_no_tpm(device: Device, network: Network) -> None:
    soft = {"is_tpm": False, "key": "device.key.pem", "key_name": "", "srk_name": ""}
    empty = {"tpm_vendor": "", "tpm_firmware": "", "reset_count": 0}
    save_record(device.folder, msgspec.structs.replace(device.record, **soft, **empty))
    settings = settings_of(device)
    record = work_until(settings, times(network, "/health", 1), shown(settings, lambda record: record.backend))
    assert record.life_cycle is None
    assert json.loads((device.run_dir / "health.json").read_text())["is_tpm"] is False
    assert set(network.asked) == {"/health"}


def test_a_run_folder_that_cannot_be_written_to_is_told_once_and_the_rest_goes_on(
    device: Device, network: Network, lines: pytest.LogCaptureFixture
) -> None:
    device.run_dir.write_text("a file")
    settings = settings_of(device, pace=Pace(interval=0.1))

    async def run() -> None:
        worker = StoreWorker(MemoryStore().open)
        working = asyncio.create_task(Duties(settings, worker).work())
        async with asyncio.timeout(30):
            while network.asked.count("/attestation") < 2:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await worker.close()

    asyncio.run(run())
    assert len([line for line in lines.messages if str(device.run_dir) in line]) == 1


def test_a_fault_in_one_duty_stops_no_other(
    device: Device, network: Network, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, faults = Checking.check, [ZeroDivisionError("a secret may be in it")]

    async def faulty(checking: Checking, identity: Any) -> bool:  # noqa: ANN401 - the method's own
        if faults:
            raise faults.pop()
        return await check(checking, identity)

    monkeypatch.setattr(Checking, "check", faulty)
    settings = settings_of(device, pace=Pace(interval=0.1))
    work_until(settings, times(network, "/health", 1))
    assert lines.messages[0].startswith("internal error in the agent's duties: ZeroDivisionError at ")
    assert "a secret" not in lines.text
    assert "the health check works again" in lines.messages


def test_a_renewal_that_fails_is_told_and_tried_again(
    device: Device, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpm_mtls.renewal._DUE", -1.0)
    settings = settings_of(device, backend=None, renew=True, pace=Pace(interval=0.1), sources=Sources(srk="file:/none"))
    record = work_until(settings, shown(settings, lambda record: record.renewal))
    assert record.renewal is not None
    assert "tpm-mtls keygen renew failed: " in record.renewal.error
    assert "/none" in record.renewal.error, "the sources of authorization values are passed on"
    assert len([line for line in lines.messages if "keygen renew failed" in line]) == 1


def test_a_certificate_that_cannot_come_back_is_told_once(device: Device, lines: pytest.LogCaptureFixture) -> None:
    (device.folder / CERTIFICATE).unlink()
    settings = settings_of(device, backend=None, renew=True, pace=Pace(interval=0.1))
    work_until(
        settings, lambda _: any("keygen restore failed" in line for line in lines.messages), ask, shown(settings, bool)
    )
    assert len([line for line in lines.messages if "keygen restore failed" in line]) == 1


def test_options_reach_the_children(device: Device) -> None:
    given = Sources(key="file:/k", owner="file:/o", srk="file:/s", endorsement="file:/e")
    settings = settings_of(device, rotate_key=True, sources=given)
    words = settings.renewal_options
    assert words[:2] == ["--if-due", "--rotate-key"]
    options = ("--auth", "--owner-auth", "--srk-auth", "--endorsement-auth")
    assert [words[words.index(option) + 1] for option in options] == ["file:/k", "file:/o", "file:/s", "file:/e"]
    assert settings_of(device).renewal_options == ["--if-due", *settings.restore_options]


def test_an_unchanged_state_is_not_told_again_after_a_restart_of_the_agent(
    device: Device, network: Network, lines: pytest.LogCaptureFixture
) -> None:
    shutil.copy(device.folder / CERTIFICATE, device.folder / "saved")
    device.tpm.tool("tpm2_clear", "-c", "p")
    settings = settings_of(device)
    for _ in range(2):
        work_until(settings, lambda _: (device.run_dir / "duties.json").exists())
        (device.run_dir / "duties.json").unlink()
    assert [line.partition(":")[0] for line in lines.messages] == ["maintenance mode begins"]
    assert network.asked == [], "it speaks to nobody in the name of a device that is gone"
