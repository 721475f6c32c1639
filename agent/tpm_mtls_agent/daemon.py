"""The agent's life: its socket, signals, the word to systemd, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING

from tpm_mtls.errors import StorageError, TctiInvalidError, TpmMtlsError, TpmVersionError, UsageError
from tpm_mtls.service_manager import notify, watchdog_interval
from tpm_mtls_agent.duties.runner import Duties
from tpm_mtls_agent.requests.access import OpenAccess, load_allow_list
from tpm_mtls_agent.requests.activation import activated_socket
from tpm_mtls_agent.requests.audit import AuditLog
from tpm_mtls_agent.requests.connections import Connections
from tpm_mtls_agent.requests.listening import bound_socket, locked
from tpm_mtls_agent.requests.service import SecretService
from tpm_mtls_agent.worker import StoreWorker

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tpm_mtls_agent.requests.access import Access
    from tpm_mtls_agent.settings import Settings
    from tpm_mtls_agent.storage.store import OpenStore

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def prepared(settings: Settings, open_store: OpenStore) -> Iterator[Daemon]:
    """An agent whose files are open; `Daemon.run` it in the block.

    Raises:
        StateError: another agent has the same state folder.
        UsageError: the allow-list is wrong.
        PemError: it is too large.
        StorageError: a file cannot be read or written.
    """
    with (
        locked(settings.lock, f"another agent runs in {settings.lock.parent}"),
        contextlib.closing(AuditLog(settings.audit)) as audit,
    ):
        yield Daemon(
            settings, _access(settings.allow_list), audit, StoreWorker(open_store, exclusive=settings.exclusive)
        )


class Daemon:
    """The agent; `prepared` makes one."""

    def __init__(self, settings: Settings, access: Access, audit: AuditLog, worker: StoreWorker) -> None:
        self._settings = settings
        self._audit = audit
        self._worker = worker
        self._service = SecretService(worker, access, audit, settings.limits)
        self._connections = Connections(self._service, settings.limits)
        self._stop = asyncio.Event()
        self._trouble = ""
        self._duties: Duties | None = None

    def stop(self) -> None:
        """Makes `run` return, when the requests in work are answered."""
        self._stop.set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serves until `stop`, SIGTERM or SIGINT.

        SIGHUP reads the allow-list again and reopens the audit log; SIGUSR1 makes all duties due.

        A TPM that is not there, or that refuses to open the store, does not end the agent: it answers with that error
        until the TPM is right again.

        Args:
            ready: called with the socket's path when clients can connect.

        Raises:
            StateError: another daemon has the socket.
            UsageError: the group, what systemd passed or the policy is wrong.
            TctiInvalidError: where the TPM is said to be is wrong.
            TpmVersionError: it is a TPM 1.2.
            StorageError: a file cannot be read or written.
        """
        with self._signals():
            try:
                await self._open()
                await self._serve(ready)
            finally:
                await self._worker.close()

    async def _open(self) -> None:
        try:
            await self._worker.open()
        except (UsageError, StorageError, TctiInvalidError, TpmVersionError):  # these stay
            raise
        except TpmMtlsError as error:
            _log.error("%s; %s", error, error.hint)
            self._trouble = f", but {error}"

    async def _serve(self, ready: Callable[[str], None]) -> None:
        with self._listening() as (listening, ours):
            working = asyncio.create_task(self._service.work())
            working.add_done_callback(lambda _: self.stop())  # before its time only by a fault, which is raised below
            feeding = asyncio.create_task(self._feed_watchdog())
            self._connections.start(listening)
            try:
                serving = f"serving {listening.getsockname()}{self._trouble}"
                notify("READY=1", f"STATUS={serving}")
                ready(listening.getsockname())
                async with self._on_duty(serving):
                    await self._stop.wait()
            finally:
                notify("STOPPING=1")
                self._connections.stop(last_call=ours)
                feeding.cancel()
        await self._connections.drain(self._settings.limits.ending)
        self._service.end()
        await working

    @contextlib.asynccontextmanager
    async def _on_duty(self, serving: str) -> AsyncIterator[None]:
        """While the block lasts, the duties are done; at its end, their children are ended."""
        if self._settings.duties is None:
            yield
            return
        self._duties = Duties(self._settings.duties, self._worker, serving=serving)
        working = asyncio.create_task(self._duties.work())
        working.add_done_callback(lambda _: self.stop())  # before its time only by a fault, which is raised below
        try:
            yield
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working

    @contextlib.contextmanager
    def _listening(self) -> Iterator[tuple[socket.socket, bool]]:
        """The listening socket, and whether it is our own."""
        passed = activated_socket()
        if passed is not None:
            with passed:
                yield passed, False
            return
        with bound_socket(self._settings.socket, group=self._settings.group, say=_log.warning) as listening:
            yield listening, True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._check_now,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _check_now(self) -> None:
        if self._duties is not None:
            self._duties.check_now()

    def _reload(self) -> None:
        """Each for itself; what cannot be read leaves in force what was."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._service.access = _access(self._settings.allow_list)
        except TpmMtlsError as error:
            _log.error("the old allow-list stays in force: %s; %s", error, error.hint)
        try:
            self._audit.reopen()
        except StorageError as error:
            _log.error("the audit log goes on in the old file: %s; %s", error, error.hint)
        _log.info("reloaded")
        notify("READY=1")

    async def _feed_watchdog(self) -> None:
        """Tells systemd that the event loop turns and that the TPM is not stuck, which only a restart could mend."""
        interval = watchdog_interval()
        while interval is not None:
            if self._worker.busy_for() < self._settings.limits.stuck:
                notify("WATCHDOG=1")
            await asyncio.sleep(interval / 2)


def _access(allow_list: Path | None) -> Access:
    return OpenAccess() if allow_list is None else load_allow_list(allow_list)
