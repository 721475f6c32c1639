"""The real backend: ``tpm-mtls server run`` as a process of its own, or its service in a thread of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from tpm_mtls_server.service import Service

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.identity import Identity
    from tpm_mtls_server.settings import Settings

START_TIMEOUT = 30
STOP_TIMEOUT = 30


class BackendProcess:
    """A running backend; ``url`` is where (``https://localhost:PORT``), ``process`` the process itself.

    ``printed`` is the line on its stdout.
    """

    def __init__(self, process: subprocess.Popen[str], printed: str, log: Path) -> None:
        self.process = process
        self.printed = printed
        url: str = json.loads(printed)["url"] if printed.startswith("{") else printed
        self.port = int(url.rpartition(":")[2])
        self.url = f"https://localhost:{self.port}"
        self._log = log

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it has logged so far, or only the lines of one event (such as ``request``)."""
        complete = self.log_text().rpartition("\n")[0]  # the last line may be in the middle of being written
        lines = [json.loads(line) for line in complete.splitlines() if line.startswith("{")]
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
    """Runs the backend with the server's ``identity`` as long as the block lasts; database and log are in ``folder``.

    Args:
        folder: an existing folder.
        identity: the server's own; its trust is the clients' CA.
        options: further options of ``tpm-mtls server run``.
        crl: the clients' CA's CRL.
        tcti: where the TPM is, for a TPM key.
        client_ca: the clients' CA, if it is not ``identity.trust``.
    """
    command = [sys.executable, "-m", "tpm_mtls", "server", "run", "--listen", "127.0.0.1:0"]
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
            printed = _first_line(process)
            if not printed:
                raise RuntimeError(f"the backend did not start: {log.read_text()}")
            yield BackendProcess(process, printed, log)
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


class BackendThread:
    """The service in a thread of this process; ``port`` is where, on the loopback address."""

    def __init__(self, settings: Settings, *, clock: Callable[[], datetime]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self.service = asyncio.run_coroutine_threadsafe(self._start(settings, clock), self._loop).result()
        except BaseException:
            self._end()
            raise
        self.port = int(self.service.url.rpartition(":")[2])

    def call(self, function: Callable[[], None]) -> None:
        """Calls ``function`` in the event loop's thread."""

        async def calling() -> None:
            function()

        asyncio.run_coroutine_threadsafe(calling(), self._loop).result(START_TIMEOUT)

    def stop(self) -> None:
        """Drains the service and ends the thread; a second call does nothing."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.service.drain(), self._loop).result(STOP_TIMEOUT)
            self._end()

    @staticmethod
    async def _start(settings: Settings, clock: Callable[[], datetime]) -> Service:
        service = Service(settings, clock=clock)
        service.start()
        return service

    def _end(self) -> None:
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result(STOP_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT)
        self._loop.close()
