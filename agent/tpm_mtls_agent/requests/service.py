"""What becomes of a request: may it be, when is its turn, what did the TPM say, and a line in the audit log."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tpm_mtls.errors import (
    AgentRefusedError,
    NoSuchSecretError,
    StorageError,
    TpmMtlsError,
    TpmRefusedError,
)
from tpm_mtls.secrets.protocol import Done, Failed, failed
from tpm_mtls_agent.requests.fair_queue import FairQueue
from tpm_mtls_agent.requests.wrong_names import WrongNames

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tpm_mtls.secrets.protocol import Request
    from tpm_mtls_agent.requests.access import Access
    from tpm_mtls_agent.requests.audit import AuditLog
    from tpm_mtls_agent.requests.peers import Peer
    from tpm_mtls_agent.settings import Limits
    from tpm_mtls_agent.storage.store import SecretStore
    from tpm_mtls_agent.worker import StoreWorker

_log = logging.getLogger(__name__)

_SHORTEST_LOOK = 0.05
"""Seconds between two looks at whether the account of a request that waits has asked for too many wrong names."""


@dataclass(eq=False)
class _Job:
    """A request on its way to the TPM."""

    account: Hashable
    asked: Request
    done: asyncio.Future[Done]
    begun: bool = False


class SecretService:
    """Answers requests, one at a time.

    Attributes:
        access: who may ask for what; may be replaced at any time.
    """

    def __init__(
        self,
        worker: StoreWorker,
        access: Access,
        audit: AuditLog,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self._worker = worker
        self._audit = audit
        self._limits = limits
        self._clock = clock
        self._queue: FairQueue[_Job] = FairQueue()
        self._wrong_names = WrongNames(free=limits.wrong_names, interval=limits.wrong_name_interval)
        self._changed = asyncio.Event()
        self._ending = False
        self._unlogged = False

    async def answer(self, peer: Peer, asked: Request, *, since: float) -> Done | Failed:
        """The answer to ``peer``, whose connection began at ``since``; its line is in the audit log by then.

        Where an allow-list is in force, nothing is given out that could not be logged. Without one any program may ask,
        and a full disk keeps nobody from its secrets.
        """
        job = _Job(peer.account, asked, asyncio.get_running_loop().create_future())
        try:
            self.access.check(peer, asked.action, asked.name)
            answer = await self._turn(job)
            self._write(peer, "ok", since=since, asked=asked, index=answer.index or None)
        except TpmMtlsError as error:
            return self._failed(peer, error, since, asked)
        except Exception as error:  # noqa: BLE001 - the last handler: one request's fault must not end the others
            return self._failed(peer, _internal(error), since, asked)
        return answer

    def refuse(self, peer: Peer, error: TpmMtlsError, *, since: float) -> Failed:
        """The answer to a connection that brought no request."""
        return self._failed(peer, error, since, None)

    async def work(self) -> None:
        """Lets requests reach the TPM in turn, until `end`, and until those that wait are done."""
        while len(self._queue) or not self._ending:
            job = self._queue.take(self._wait)
            if job is not None:
                await self._perform(job)
                continue
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._queue.soonest(self._wait)):
                    await self._changed.wait()

    def end(self) -> None:
        """Makes `work` return."""
        self._ending = True
        self._changed.set()

    def _wait(self, account: Hashable) -> float:
        return self._wrong_names.wait(account, self._clock())

    async def _turn(self, job: _Job) -> Done:
        """What comes of the request when it was its turn."""
        self._queue.put(job.account, job)
        self._changed.set()
        try:
            left = self._limits.queue
            look = max(self._limits.wrong_name_wait, _SHORTEST_LOOK)
            while left > 0 and not job.done.done():
                await asyncio.wait([job.done], timeout=min(look, left))
                left -= look
                # looked at again and again: others of this account, which the TPM keeps waiting too, may be guesses
                if not job.begun and (seconds := self._wait(job.account)) > 0:
                    raise AgentRefusedError(
                        "this user asked for too many names that nobody has",
                        hint=f"check the name; ask again in {seconds:.0f} seconds",
                    )
            if not job.begun:
                raise AgentRefusedError(
                    f"the TPM did not get to this request within {self._limits.queue:g} seconds", hint="ask again later"
                )
            return await job.done
        finally:
            job.done.cancel()  # where nobody waits for it any more
            if not job.begun:
                self._queue.remove(job.account, job)

    async def _perform(self, job: _Job) -> None:
        job.begun = True
        try:
            done = await self._worker.run(lambda store: _operate(store, job.asked))
        except Exception as error:  # noqa: BLE001 - `answer` tells the client, and goes on
            if isinstance(error, NoSuchSecretError):
                self._wrong_names.add(job.account, self._clock())
            if not job.done.cancelled():
                job.done.set_exception(error)
        else:
            if not job.done.cancelled():
                job.done.set_result(done)

    def _failed(self, peer: Peer, error: TpmMtlsError, since: float, asked: Request | None) -> Failed:
        with suppress(StorageError):
            rc = error.rc if isinstance(error, TpmRefusedError) else 0
            # wrong names are few by themselves, and the TPM is slow
            cheap = not isinstance(error, NoSuchSecretError | TpmRefusedError)
            self._write(peer, type(error).__name__, since=since, asked=asked, rc=rc, cheap=cheap)
        return failed(error)

    def _write(
        self,
        peer: Peer,
        result: str,
        *,
        since: float,
        asked: Request | None,
        index: str | None = None,
        rc: int = 0,
        cheap: bool = False,
    ) -> None:
        """A line in the audit log. Raises `StorageError` where there must be one and cannot."""
        try:
            self._audit.write(
                peer,
                result,
                seconds=self._clock() - since,
                action=asked.action if asked else None,
                secret=self._worker.label(asked.name.encode()) if asked else None,
                index=index,
                rc=rc,
                cheap=cheap,
            )
        except StorageError as error:
            if not self._unlogged:
                _log.error("%s; %s", error, error.hint)
            self._unlogged = True
            if self.access.strict:
                raise
        else:
            self._unlogged = False


def _operate(store: SecretStore, asked: Request) -> Done:
    name = asked.name.encode()
    if asked.action == "get":
        return Done(value=store.get(name).decode())
    if asked.action == "del":
        store.delete(name)
        return Done()
    return Done(index=f"{store.set(name, cast('str', asked.value).encode()):#010x}")


def _internal(error: Exception) -> TpmMtlsError:
    """The error for a fault of ours; where it is, but not its text: that may have a secret in it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    _log.error("internal: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
    return TpmMtlsError("internal error of the agent", hint="please report it, with what its log says")
