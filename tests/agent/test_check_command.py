"""``tpm-mtls agent check``: by the agent that runs, or by this process; and who holds a lock."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from support.agent_process import agent_process
from support.healthy_device import HANDLE, Device
from support.tpm_keys import make_srk
from tpm_mtls import cli
from tpm_mtls.attestation.health import HealthReport
from tpm_mtls.attestation.messages import DeviceState, Verdict
from tpm_mtls.errors import IdentityError, StateError
from tpm_mtls_agent import check_command
from tpm_mtls_agent.check_command import as_data, check_now, describe, failure, wait_for_verdict
from tpm_mtls_agent.duties.record import DutiesRecord, Outcome, save_duties
from tpm_mtls_agent.health import Authorizations
from tpm_mtls_agent.requests.listening import lock_holder, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

_HOLDS = """
import sys, time
from pathlib import Path
from tpm_mtls_agent.requests.listening import locked
with locked(Path(sys.argv[1]), "held"):
    print("held", flush=True)
    time.sleep(60)
"""


def run(*arguments: object) -> int:
    return cli.run([str(each) for each in arguments])


def holding(lock: Path) -> subprocess.Popen[str]:
    """A process that holds ``lock``, and does nothing else."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDS, lock], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_who_holds_a_lock_is_found_and_nobody_else(tmp_path: Path) -> None:
    lock = tmp_path / "agent.lock"
    assert lock_holder(lock) is None
    process = holding(lock)
    try:
        assert lock_holder(lock) == process.pid
        lock.write_text(f"{os.getpid()}\n")  # an old number, of a process that lives
        assert lock_holder(lock) is None
        for nonsense in ("", "x", "4294967295"):
            lock.write_text(nonsense)
            assert lock_holder(lock) is None
    finally:
        end(process)
    assert lock_holder(lock) is None
    with locked(lock, "another has it"):
        assert lock.read_text() == f"{os.getpid()}\n"


# -- where an agent runs ----------------------------------------------------------------------------------------------


def test_an_agent_checks_when_it_is_asked_and_status_shows_it(
    tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device(tpm, tmp_path)
    where = ("--state-dir", device.folder, "--run-dir", device.run_dir, "--json")
    with agent_process(tpm, tmp_path, "--run-dir", device.run_dir) as agent:
        agent.client.set("key", "value")
        assert run("agent", "check", *where) == 0
        assert json.loads(capsys.readouterr().out)["maintenance"] is False

        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", hex(HANDLE))
        assert run("agent", "check", *where) == 10
        said = capsys.readouterr()
        assert [each["kind"] for each in json.loads(said.out)["failures"]] == ["SignFailure"]
        assert "tpm-mtls: error: maintenance mode, SignFailure: " in said.err

        device.persist_again()
        assert run("agent", "check", *where) == 0
        assert agent.client.get("key") == "value"
        capsys.readouterr()
        assert run("agent", "status", "--socket", agent.socket, *where) == 0
        status = json.loads(capsys.readouterr().out)
        assert (status["health"]["failures"], status["duties"]["life_cycle"]) == ([], "same")
        assert run("agent", "status", "--socket", agent.socket, *where[:-1]) == 0
        text = capsys.readouterr().out
        assert "TPM healthy" in text
        assert "the certificate is renewed from " in text
        log = agent.end()
    assert agent.process.returncode == 0
    assert log.count("maintenance mode begins") == log.count("maintenance mode ends") == 1


def test_an_agent_without_an_identity_keeps_secrets_and_nothing_else(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """As before there were duties; one that enrolls while it runs is noticed."""
    with agent_process(tpm, tmp_path, "--run-dir", tmp_path / "run", "--interval", "1s") as agent:
        agent.process.send_signal(signal.SIGUSR1)
        agent.client.set("key", "value")
        with pytest.raises(IdentityError, match="has no identity in"):
            check_now(
                agent.state, agent.state / "agent.lock", tmp_path / "run", tcti=None, authorizations=Authorizations()
            )
        assert not (tmp_path / "run").exists()
        device = Device(tpm, tmp_path)
        while not (device.run_dir / "duties.json").exists():
            time.sleep(0.05)
            assert agent.process.poll() is None
        assert agent.client.get("key") == "value"
        assert "Traceback" not in agent.end()


def test_a_damaged_identity_is_told_once_and_keeps_nobody_from_his_secrets(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path)
    record = (device.folder / "identity.json").read_bytes()
    with agent_process(tpm, tmp_path, "--run-dir", device.run_dir, "--interval", "1s") as agent:
        agent.client.set("key", "value")
        (device.folder / "identity.json").write_text("{")
        agent.until_said("identity.json")
        time.sleep(1.5)  # for another check
        assert agent.client.get("key") == "value"
        (device.folder / "identity.json").write_bytes(record)
        agent.until_said("can be read again")
        log = agent.end()
    assert len([line for line in log.splitlines() if "WARNING" in line and "identity.json" in line]) == 1
    assert log.count("can be read again") == 1


def test_an_agent_that_ends_instead_of_checking_is_told(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tpm, tmp_path)
    lock = device.folder / "agent.lock"
    process = holding(lock)  # it has no handler for SIGUSR1

    def check() -> None:
        check_now(device.folder, lock, device.run_dir, tcti=tpm.tcti, authorizations=Authorizations())

    try:
        with pytest.raises(StateError, match=f"process {process.pid}, ended"):
            check()
    finally:
        end(process)

    deaf = holding(lock)
    monkeypatch.setattr(check_command, "_PATIENCE", 0.2)
    monkeypatch.setattr(signal, "SIGUSR1", signal.SIGCONT)
    try:
        with pytest.raises(StateError, match=r"did not check within 0\.2 seconds"):
            check()
    finally:
        end(deaf)


def test_the_report_is_of_a_check_that_began_later(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of one which was at work already, nor what an earlier start of the machine left behind."""
    device = Device(tpm, tmp_path)
    lock = device.folder / "agent.lock"
    process = holding(lock)
    monkeypatch.setattr(signal, "SIGUSR1", signal.SIGCONT)

    def check_while(record: Callable[[], DutiesRecord]) -> HealthReport:
        device.check()
        writing = threading.Timer(0.1, lambda: save_duties(device.run_dir, record()))
        writing.start()
        try:
            return check_now(device.folder, lock, device.run_dir, tcti=tpm.tcti, authorizations=Authorizations())
        finally:
            writing.join()

    earlier, now = time.monotonic(), time.monotonic
    try:
        save_duties(device.run_dir, DutiesRecord())
        (device.run_dir / "duties.json").write_text("{")
        assert check_while(lambda: DutiesRecord(check_began=now())).failures == ()
        with pytest.raises(StateError, match="is gone again"):
            check_while(lambda: (device.run_dir / "health.json").unlink() or DutiesRecord(check_began=now()))
        monkeypatch.setattr(check_command, "_PATIENCE", 0.3)
        for moment in (earlier, earlier + 3600, None):
            with pytest.raises(StateError, match="did not check within"):
                check_while(functools.partial(DutiesRecord, check_began=moment, round_began=moment))
    finally:
        end(process)


# -- what the backend says --------------------------------------------------------------------------------------------

TRUSTED = Verdict(trusted=True, state=DeviceState.ATTESTED)
DISTRUSTED = Verdict(
    trusted=False, check=9, reason="PCR 4 differs; \x1b[31mlook at it; or not", state=DeviceState.FAILING
)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """The lock of an agent that does nothing."""
    process = holding(tmp_path / "agent.lock")
    yield tmp_path / "agent.lock"
    end(process)


def wait(lock: Path, *, since: float = 5.0, patience: float = 30.0) -> Verdict:
    return wait_for_verdict(lock, lock.parent, since=since, patience=patience)


def test_the_verdict_is_that_of_a_round_which_began_later(agent: Path) -> None:
    well = Outcome(time=1)
    save_duties(agent.parent, DutiesRecord(round_began=4.9, backend=well, verdict=DISTRUSTED))
    with pytest.raises(StateError, match=r"verdict did not come within 0\.1 seconds"):
        wait(agent, patience=0.1)
    record = DutiesRecord(round_began=5.0, backend=well, verdict=TRUSTED)
    later = threading.Timer(0.2, save_duties, (agent.parent, record))
    later.start()
    assert wait(agent) == TRUSTED
    later.join()


def test_that_there_is_no_verdict_is_told_with_the_reason(agent: Path) -> None:
    for record, said in (
        (DutiesRecord(round_began=5.0), "the agent has no backend"),
        (DutiesRecord(round_began=5.0, backend=Outcome(time=1)), "has no attestation key"),
        (
            DutiesRecord(
                round_began=5.0, backend=Outcome(time=1, error="nobody answers", hint="look"), verdict=TRUSTED
            ),
            "the agent has no verdict: nobody answers",
        ),
    ):
        save_duties(agent.parent, record)
        with pytest.raises(StateError, match=said) as caught:
            wait(agent)
        assert caught.value.hint


def test_without_an_agent_there_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no agent runs"):
        wait(tmp_path / "agent.lock")
    process = holding(tmp_path / "agent.lock")
    ending = threading.Timer(0.2, process.kill)
    ending.start()
    with pytest.raises(StateError, match=f"process {process.pid}, ended"):
        wait(tmp_path / "agent.lock")
    end(process)
    ending.join()


def test_a_verdict_is_shown_and_one_against_the_device_is_a_failure() -> None:
    report = HealthReport(time=1)
    assert "verdict" not in as_data(report)
    assert as_data(report, TRUSTED)["verdict"]["state"] == "attested"
    assert describe(report, TRUSTED).splitlines()[-1] == "backend: attested"
    assert failure(report, TRUSTED) is failure(report) is None
    error = failure(report, DISTRUSTED)
    assert str(error) == "the backend does not trust what was booted: PCR 4 differs"
    assert error is not None
    assert error.hint == "?[31mlook at it; or not"


# -- where none runs --------------------------------------------------------------------------------------------------


def test_without_an_agent_the_command_checks_by_itself(
    tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device(tpm, tmp_path)
    where = ("--state-dir", device.folder, "--run-dir", device.run_dir, "--tcti", tpm.tcti)
    assert run("agent", "check", *where) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("TPM healthy")
    assert run("agent", "check", *where, "--wait", "1") == 10, "a verdict was asked for"
    said = capsys.readouterr()
    assert said.out.startswith("TPM healthy")
    assert "tpm-mtls: error: no agent runs that could show the backend what was booted" in said.err
    assert [line.partition(" (")[0] for line in lines[1:4]] == ["wrap: passed", "quote: passed", "sign: passed"]
    assert (device.run_dir / "health.json").exists()

    tpm.tool("tpm2_clear", "-c", "p")
    assert run("agent", "check", *where) == 10
    said = capsys.readouterr()
    assert "TpmCleared: this is another TPM, or it was cleared" in said.out
    assert "maintenance mode, TpmCleared" in said.err
    assert (device.run_dir / "maintenance").read_text().startswith("TpmCleared: ")


def test_without_an_identity_the_tpm_itself_is_checked(tpm: SimulatedTpm, tmp_path: Path) -> None:
    make_srk(tpm, tmp_path)
    new, run_dir = tmp_path / "new", tmp_path / "run"
    report = check_now(new, new / "agent.lock", run_dir, tcti=tpm.tcti, authorizations=Authorizations())
    assert [(each.name, each.outcome) for each in report.checks] == [
        ("wrap", "passed"),
        ("quote", "skipped"),
        ("sign", "skipped"),
    ]
