"""The agent's life: its socket, signals, the word to systemd, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING

from tpm_mtls.errors import StorageError, TpmMtlsError, UsageError
from tpm_mtls.service_manager import notify, watchdog_interval
from tpm_mtls_agent.access import OpenAccess, load_allow_list
from tpm_mtls_agent.activation import activated_socket
from tpm_mtls_agent.audit import AuditLog
from tpm_mtls_agent.connections import Connections
from tpm_mtls_agent.listening import bound_socket, locked
from tpm_mtls_agent.service import SecretService
from tpm_mtls_agent.worker import StoreWorker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tpm_mtls_agent.access import Access
    from tpm_mtls_agent.settings import Settings
    from tpm_mtls_agent.store import OpenStore

_log = logging.getLogger(__name__)


class Daemon:
    """The agent, inside a running event loop.

    Args:
        settings: how it is run.
        open_store: opens what keeps the secrets.
    """

    def __init__(self, settings: Settings, open_store: OpenStore) -> None:
        self._settings = settings
        self._worker = StoreWorker(open_store)
        self._stop = asyncio.Event()
        self._trouble = ""

    def stop(self) -> None:
        """Makes `run` return, when the requests in work are answered."""
        self._stop.set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serves until `stop`, SIGTERM or SIGINT; SIGHUP reads the allow-list again and reopens the audit log.

        A TPM that is not there, or that refuses to open the store, does not end the agent: it answers with that error
        until the TPM is right again.

        Args:
            ready: called with the socket's path when clients can connect.

        Raises:
            StateError: another agent has the same state folder or socket, or another daemon the socket.
            UsageError: the allow-list, the group or what systemd passed is wrong.
            StorageError: a file cannot be read or written.
        """
        with (
            locked(self._settings.lock, f"another agent runs in {self._settings.lock.parent}"),
            contextlib.closing(AuditLog(self._settings.audit)) as audit,
        ):
            service = SecretService(self._worker, self._access(), audit, self._settings.limits)
            with self._signals(service, audit):
                try:
                    await self._open()
                    await self._serve(service, ready)
                finally:
                    await self._worker.close()

    async def _serve(self, service: SecretService, ready: Callable[[str], None]) -> None:
        limits = self._settings.limits
        with self._listening() as (listening, ours):
            working = asyncio.create_task(service.work())
            working.add_done_callback(lambda _: self.stop())  # before its time only by a fault, which is raised below
            feeding = asyncio.create_task(self._feed_watchdog())
            connections = Connections(listening, service, limits)
            try:
                connections.start()
                notify("READY=1", f"STATUS=serving {listening.getsockname()}{self._trouble}")
                ready(listening.getsockname())
                await self._stop.wait()
            finally:
                notify("STOPPING=1")
                connections.stop(last_call=ours)
                feeding.cancel()
        await connections.drain(limits.ending)
        service.end()
        await working

    async def _open(self) -> None:
        try:
            await self._worker.open()
        except (UsageError, StorageError):
            raise
        except TpmMtlsError as error:
            _log.error("%s; %s", error, error.hint)
            self._trouble = f", but {error}"

    def _access(self) -> Access:
        return OpenAccess() if self._settings.allow_list is None else load_allow_list(self._settings.allow_list)

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
    def _signals(self, service: SecretService, audit: AuditLog) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload, service, audit)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _reload(self, service: SecretService, audit: AuditLog) -> None:
        """Each for itself; what cannot be read leaves in force what was."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            service.access = self._access()
        except TpmMtlsError as error:
            _log.error("the old allow-list stays in force: %s; %s", error, error.hint)
        try:
            audit.reopen()
        except StorageError as error:
            _log.error("the audit log goes on in the old file: %s; %s", error, error.hint)
        _log.info("read again: the allow-list and the audit log's path")
        notify("READY=1")

    async def _feed_watchdog(self) -> None:
        """Tells systemd that the event loop turns and that the TPM is not stuck, which only a restart could mend."""
        interval = watchdog_interval()
        while interval is not None:
            if self._worker.busy_for() < self._settings.limits.stuck:
                notify("WATCHDOG=1")
            await asyncio.sleep(interval / 2)
