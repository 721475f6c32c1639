"""An agent on duty, as its owner runs it: enrolled by a real CA, reporting to a real backend, over a simulated TPM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.backend import running_backend
from support.fleet import Device, administers, tpm_mtls
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.secrets import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.backend import BackendProcess
    from support.fleet import FleetCa
    from support.tpm import SimulatedTpm

_NOT_INHERITED = ("OPENSSL_", "TPM", "NOTIFY_")
_PATIENCE = 60.0  # seconds; a whole round of duties takes three


@dataclass(frozen=True)
class Backend:
    """A running backend, and its operator's commands."""

    process: BackendProcess
    database: str

    @property
    def url(self) -> str:
        """Where it is."""
        return self.process.url

    def server(self, *words: str) -> Any:  # noqa: ANN401 - JSON
        """What ``tpm-mtls server …`` answers."""
        return json.loads(administers("server", *words, "--database", self.database, "--json"))


@contextlib.contextmanager
def fleet_backend(ca: FleetCa, folder: Path, *options: str) -> Iterator[Backend]:
    """A backend whose certificate, and whose devices', are of ``ca``."""
    folder.mkdir(exist_ok=True)
    key, csr, certificate = folder / "server.key", folder / "server.csr", folder / "server.pem"
    subprocess.run(
        [
            *("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", csr, "-subj", "/CN=localhost"),
        ],
        check=True,
        capture_output=True,
    )
    unlock = ("--passphrase", f"file:{ca.folder.parent / 'passphrase'}")
    ca.pki("issue", "--profile", "server", "--csr", str(csr), "--name", "localhost", "--out", str(certificate), *unlock)
    ca.pki("crl", "--out", str(folder / "crl.pem"), *unlock)
    identity = Identity(KeyFile(key), certificate, ca.folder / "root.pem")
    with running_backend(folder, identity, *options, crl=folder / "crl.pem") as process:
        yield Backend(process, f"sqlite:///{folder}/telemetry.db")


class DutyAgent:
    """A running agent.

    Attributes:
        process: its process.
        run_dir: where it shows what its duties came to.
        secrets: a client of it.
    """

    def __init__(self, device: Device, folder: Path, process: subprocess.Popen[str]) -> None:
        self.device = device
        self.process = process
        self.run_dir = folder / "run"
        self.secrets = Client(folder / "tpmd.sock")
        self._log = folder / "agent.log"

    def log(self) -> list[str]:
        """Its lines on stderr."""
        return self._log.read_text().splitlines()

    def duties(self) -> dict[str, Any]:
        """``duties.json``; nothing if it is not there yet."""
        path = self.run_dir / "duties.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def health(self) -> dict[str, Any]:
        """``health.json``."""
        found: dict[str, Any] = json.loads((self.run_dir / "health.json").read_text())
        return found

    def failures(self) -> list[str]:
        """The kinds of failures, of a check that is made now."""
        done = self.check()
        found = json.loads(done.stdout) if done.stdout else {"failures": [{"kind": done.stderr}]}
        assert (done.returncode == 0) == (not found["failures"]), done.stderr
        return [each["kind"] for each in found["failures"]]

    def maintenance(self) -> str:
        """What is in the file that stands for maintenance mode; nothing if it is not there."""
        path = self.run_dir / "maintenance"
        return path.read_text() if path.exists() else ""

    def verdict(self) -> dict[str, Any]:
        """The backend's last one; nothing if there was none."""
        return self.duties().get("verdict") or {}

    def ask(self) -> None:
        """Makes everything due."""
        self.process.send_signal(signal.SIGUSR1)

    def check(self) -> subprocess.CompletedProcess[str]:
        """``tpm-mtls agent check``."""
        where = ("--state-dir", str(self.device.folder), "--run-dir", str(self.run_dir))
        return tpm_mtls("agent", "check", *where, "--tcti", self.device.tpm.tcti, "--json")

    def until(self, holds: Callable[[], Any], what: str = "") -> None:
        """Waits until ``holds``."""
        end = time.monotonic() + _PATIENCE
        while not holds():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, f"{what}: {self.duties()}\n{self.log()}"
            time.sleep(0.05)

    def attested_again(self) -> dict[str, Any]:
        """Makes everything due, and waits for another verdict."""
        return self.next_verdict(self.ask)

    def next_verdict(self, cause: Callable[[], object]) -> dict[str, Any]:
        """The verdict that comes after ``cause``."""
        before = self.duties().get("attestations", 0)
        cause()
        self.until(lambda: self.duties().get("attestations", 0) > before, "another verdict")
        return self.verdict()

    def end(self) -> int:
        """Asks it to end; its exit status."""
        self.process.terminate()
        return self.process.wait(_PATIENCE)


@contextlib.contextmanager
def duty_agent(
    device: Device, folder: Path, *options: object, environment: dict[str, str] | None = None
) -> Iterator[DutyAgent]:
    """An agent of ``device`` with its other files in ``folder``."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tpm_mtls", "agent", "run", "--socket", folder / "tpmd.sock"]
    command += ["--state-dir", device.folder, "--tcti", device.tpm.tcti, "--run-dir", folder / "run"]
    command += ["--event-log", folder / "event-log", "--ima-log", folder / "ima-log", *options]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    with (
        (folder / "agent.log").open("a") as log,
        subprocess.Popen(
            [str(each) for each in command],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=inherited | (environment or {}),
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), (folder / "agent.log").read_text()
            yield DutyAgent(device, folder, process)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(_PATIENCE)


def enrolled_device(tpm: SimulatedTpm, ca: FleetCa, folder: Path) -> Device:
    """A device whose TPM vouched for it; ``folder`` is its identity folder."""
    folder.parent.mkdir(exist_ok=True)
    ca.trust_maker(tpm)
    device = Device(tpm, folder, ca)
    done = device.first_boot()
    assert done.returncode == 0, done.stderr
    return device
