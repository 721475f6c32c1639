"""The real backend, ``tpm-mtls server run``, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tpm_mtls.identity import Identity

START_TIMEOUT = 30
STOP_TIMEOUT = 30


class BackendProcess:
    """A running backend; ``url`` is where (``https://localhost:PORT``), ``process`` the process itself."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self._log = log

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it has logged so far, or only the lines of one event (such as ``request``)."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [line for line in lines if event in {None, line["event"]}]

    def log_text(self) -> str:
        """Its stderr as it is."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """Asks it to end (SIGTERM) and returns its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT)


@contextlib.contextmanager
def running_backend(
    folder: Path,
    identity: Identity,
    *options: str,
    crl: Path | None = None,
    tcti: str | None = None,
    client_ca: Path | None = None,
) -> Iterator[BackendProcess]:
    """Runs the backend with the server's ``identity`` as long as the block lasts; its database and log are in ``folder``.

    Args:
        folder: an existing folder.
        identity: the server's own; its trust is the clients' CA.
        options: further options of ``tpm-mtls server run``.
        crl: the clients' CA's CRL.
        tcti: where the TPM is, for a TPM key.
        client_ca: the clients' CA, if it is not ``identity.trust``.
    """
    command = [sys.executable, "-m", "tpm_mtls", "server", "run", "--listen", "localhost:0"]
    command += ["--cert", str(identity.certificate), "--key", str(identity.key)]
    command += ["--client-ca", str(client_ca or identity.trust), "--database", f"sqlite:///{folder}/telemetry.db"]
    command += ["--crl", str(crl)] if crl else []
    command += ["--tcti", tcti] if tcti else []
    log = folder / "backend.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    with process:
        try:
            url = _first_line(process)
            if not url:
                raise RuntimeError(f"the backend did not start: {log.read_text()}")
            yield BackendProcess(process, url, log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise


def _first_line(process: subprocess.Popen[str]) -> str:
    output = process.stdout
    if output is None or not select.select([output], [], [], START_TIMEOUT)[0]:
        process.kill()
        return ""
    return output.readline().strip()
