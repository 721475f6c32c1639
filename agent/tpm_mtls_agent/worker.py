"""The one thread that speaks to the TPM: commands of two requests never interleave, and the event loop never waits."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from tpm_mtls.errors import TpmMtlsError, TpmUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tpm_mtls_agent.storage.store import OpenStore, SecretStore

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class StoreWorker:
    """Runs operations on the secret store, and others with the TPM, one after another, in a thread of its own.

    The TPM stays open between operations; nothing stays loaded in it. When it could not be opened, or was lost, the
    next operation opens it again. Where it takes one connection at a time (``exclusive``: it has no resource manager)
    others get theirs by `release`, `shared` and `apart`; where it takes many, these close nothing.
    """

    def __init__(
        self, open_store: OpenStore, *, exclusive: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_store = open_store
        self._exclusive = exclusive
        self._clock = clock
        self._sharers = 0
        # libtss2 takes a call that a signal interrupted for a failure: signals are for the other thread
        self._thread = ThreadPoolExecutor(
            1, "tpm", initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _SIGNALS)
        )
        self._opened = ExitStack()
        self._store: SecretStore | None = None
        self._label: Callable[[bytes], str] | None = None
        self._since: float | None = None

    async def open(self) -> None:
        """Opens the TPM and the store now; otherwise the first operation does. Raises what opening raises."""
        await self.run(lambda _: None)

    async def run(self, operation: Callable[[SecretStore], T]) -> T:
        """What ``operation`` returns; raises what it, or opening the store, raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, operation)

    async def release(self) -> None:
        """Gives the TPM back when the operation in progress has ended; the next operation takes it again."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._release)

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """While the block lasts, another process uses the TPM, too: it is given back after each operation.

        Operations go on meanwhile: whoever waits for a secret does not wait for what the other process waits for.
        """
        self._sharers += 1
        try:
            await self.release()
            yield
        finally:
            self._sharers -= 1

    async def apart(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, which opens the TPM itself, in this thread, while the store is closed."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._apart, function)

    def label(self, name: bytes) -> str | None:
        """The keyed hash of ``name`` for logs; none if the store was never open, as its key is in the TPM."""
        return self._label(name) if self._label else None

    def busy_for(self) -> float:
        """Seconds since the present operation began; 0 if there is none."""
        return 0.0 if self._since is None else self._clock() - self._since

    async def close(self) -> None:
        """Ends the operation in progress, then the store, then the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _run(self, operation: Callable[[SecretStore], T]) -> T:
        self._since = self._clock()
        try:
            if self._store is None:
                self._store = self._opened.enter_context(self._open_store())
                self._label = self._store.label
            return operation(self._store)
        except TpmUnavailableError:
            self._close()
            raise
        finally:
            if self._sharers:
                self._release()
            self._since = None

    def _apart(self, function: Callable[[], T]) -> T:
        self._since = self._clock()
        try:
            self._release()
            return function()
        finally:
            self._since = None

    def _release(self) -> None:
        if self._exclusive:
            self._close()

    def _close(self) -> None:
        self._store = None
        with suppress(TpmMtlsError):  # what ends may be broken already
            self._opened.close()
