"""A simulated TPM for one test, looked at from outside with tpm2-tools."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tpm_mtls_simulator import Simulator

if TYPE_CHECKING:
    from pathlib import Path


class SimulatedTpm:
    """A running simulated TPM; ``tcti`` is how programs reach it."""

    def __init__(self, folder: Path, *, ek_certificates: bool = False) -> None:
        self.simulator = Simulator(folder)
        self.tcti = self.simulator.start(ek_certificates=ek_certificates).tcti

    def stop(self) -> None:
        """Cuts its power."""
        self.simulator.stop()

    def restart(self) -> None:
        """Cuts its power and starts it again at the same place: transient objects and sessions are gone."""
        self.simulator.stop()
        assert self.simulator.start().tcti == self.tcti

    def tool(self, *command: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a program of tpm2-tools (or any other that reads TPM2TOOLS_TCTI) against this TPM."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
        return subprocess.run(
            command,
            env=environment | {"TPM2TOOLS_TCTI": self.tcti},
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
            cwd=cwd,
        )

    def handles(self, kind: str) -> list[str]:
        """The TPM's own list: ``transient``, ``persistent``, ``loaded-session``, ``saved-session`` or ``nv-index``."""
        return [
            line.removeprefix("- ").strip() for line in self.tool("tpm2_getcap", f"handles-{kind}").stdout.splitlines()
        ]

    def flush(self) -> None:
        """Removes transient objects that a killed program left."""
        self.tool("tpm2_flushcontext", "--transient-object")

    def assert_nothing_leaked(self) -> None:
        """No transient object and no session may be left; a TPM that a test switched off has none."""
        status = self.simulator.status()
        if status is None or not status.running:
            return
        assert self.handles("transient") == []
        assert self.handles("loaded-session") == []
        assert self.handles("saved-session") == []
