"""Connections: one request each, read in time, answered and closed; with a cap for all and one for each account."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tpm_mtls.errors import AgentRefusedError, UsageError
from tpm_mtls.secrets.protocol import Done, Failed, encode_answer
from tpm_mtls_agent.requests.peers import peer_of
from tpm_mtls_agent.requests.protocol import EXAMPLE, RequestReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable

    from tpm_mtls.secrets.protocol import Request
    from tpm_mtls_agent.requests.peers import Peer
    from tpm_mtls_agent.requests.service import SecretService
    from tpm_mtls_agent.settings import Limits

_CHUNK = 16 * 1024
_LARGE = 16 * 1024  # bytes of a request; most have less
_LARGE_EACH = 8  # such requests at once, of one account: they hold up to 400 kB each
_DISCARDED = 4 * 1024 * 1024  # bytes read after the answer, so that who still sends can see it
_PAUSE = 1.0  # seconds without accepting when the system has no descriptor or no memory for another connection
_LAST_CALL = 0.5  # seconds that the agent waits for each client when it ends

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Account:
    connections: int = 0  # those that are answered and not closed yet, too
    requests: int = 0
    large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LARGE_EACH))


class Connections:
    """Accepts and serves the clients of a listening socket."""

    def __init__(self, service: SecretService, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._limits = limits
        self._clock = clock
        self._accounts: dict[Hashable, _Account] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._patience: set[asyncio.Timeout] = set()
        self._listening: socket.socket
        self._accepting = False
        self._ending = False

    def start(self, listening: socket.socket) -> None:
        """Accepts connections of ``listening`` from now on, until `stop`."""
        self._listening = listening
        self._listening.setblocking(False)
        self._resume()

    def stop(self, *, last_call: bool) -> None:
        """Accepts no more; requests that are on their way have half a second.

        Args:
            last_call: whether to accept who waits in the kernel, as nobody will after us.
        """
        if last_call:
            self._accept()
        self._ending = True
        self._pause()
        soon = asyncio.get_running_loop().time() + _LAST_CALL
        for timeout in self._patience:
            when = timeout.when()
            timeout.reschedule(soon if when is None else min(when, soon))

    async def drain(self, seconds: float) -> None:
        """Waits until all requests in work are answered; cuts those off that take longer than ``seconds``."""
        if not self._serving:
            return
        _, late = await asyncio.wait(self._serving, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _resume(self) -> None:
        if not self._accepting and not self._ending and len(self._serving) < self._limits.connections:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listening)

    def _accept(self) -> None:
        """Takes who waits, in the order they came, as far as there is room."""
        while len(self._serving) < self._limits.connections:
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("cannot accept connections: %s", error.strerror)
                self._pause()
                asyncio.get_running_loop().call_later(_PAUSE, self._resume)
                return
            connection.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._serve(connection))
            self._serving.add(task)
            task.add_done_callback(self._ended)
        self._pause()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._resume()

    async def _serve(self, connection: socket.socket) -> None:
        since = self._clock()
        with connection:
            peer = peer_of(connection)
            account = self._accounts.setdefault(peer.account, _Account())
            account.connections += 1
            try:
                if account.requests >= self._limits.requests_each:
                    self._turn_away(connection, peer, since)
                else:
                    await self._converse(connection, peer, account, since)
            except TimeoutError:
                _log.debug("process %d did not take its answer, or did not close", peer.pid)
            except OSError as error:
                _log.debug("process %d went away: %s", peer.pid, error.strerror)
            finally:
                account.connections -= 1
                if not account.connections:
                    del self._accounts[peer.account]

    def _turn_away(self, connection: socket.socket, peer: Peer, since: float) -> None:
        """Without waiting for anything: what is turned away must not take up room."""
        with suppress(BlockingIOError):
            connection.recv(_CHUNK)  # closing before it is read would reset the connection
        busy = AgentRefusedError("this user has too many requests at once", hint="wait for the answers to some of them")
        connection.send(encode_answer(self._service.refuse(peer, busy, since=since)))

    async def _converse(self, connection: socket.socket, peer: Peer, account: _Account, since: float) -> None:
        account.requests += 1
        try:
            answer = await self._answer(connection, peer, account, since)
            if answer is None:
                return
            async with asyncio.timeout(self._limits.answer):
                await asyncio.get_running_loop().sock_sendall(connection, encode_answer(answer))
            connection.shutdown(socket.SHUT_WR)
        finally:
            account.requests -= 1
        if account.connections - account.requests <= self._limits.requests_each:
            async with self._deadline(self._limits.answer):
                await _until_closed(connection)

    async def _answer(
        self, connection: socket.socket, peer: Peer, account: _Account, since: float
    ) -> Done | Failed | None:
        async with AsyncExitStack() as held:
            try:
                asked = await self._read(connection, account, held)
            except UsageError as error:
                return self._service.refuse(peer, error, since=since)
            return await self._service.answer(peer, asked, since=since) if asked else None

    async def _read(self, connection: socket.socket, account: _Account, held: AsyncExitStack) -> Request | None:
        """The request; none if the client closed without a word. ``held`` gets what a large one takes of ``account``.

        Raises:
            UsageError: it is none, or did not come in time.
        """
        reader, loop, seconds = RequestReader(), asyncio.get_running_loop(), self._limits.request
        large = False
        try:
            async with self._deadline(seconds) as timeout:
                while data := await loop.sock_recv(connection, _CHUNK):
                    if reader.feed(data):
                        return reader.request()
                    if reader.size > _LARGE and not large:
                        large = True
                        timeout.reschedule(None)  # the others have time-outs of their own
                        await held.enter_async_context(account.large)
                        timeout.reschedule(loop.time() + seconds)
        except TimeoutError as error:
            raise UsageError(f"no complete request came within {seconds:g} seconds", hint=EXAMPLE) from error
        if reader.empty:
            return None
        raise UsageError("the request ends in the middle", hint=EXAMPLE)

    @asynccontextmanager
    async def _deadline(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        """A time-out for waiting for a client, which is cut short when the agent ends."""
        async with asyncio.timeout(min(_LAST_CALL, seconds) if self._ending else seconds) as timeout:
            self._patience.add(timeout)
            try:
                yield timeout
            finally:
                self._patience.discard(timeout)


async def _until_closed(connection: socket.socket) -> None:
    """Reads what still comes: closing before it is read would take the answer away from the client (unix(7))."""
    loop, discarded = asyncio.get_running_loop(), 0
    while discarded < _DISCARDED and (data := await loop.sock_recv(connection, _CHUNK)):
        discarded += len(data)
