"""Accepts TLS connections for a server, at most so many at once, and ends them in order.

For asyncio servers of any protocol. `tpm_mtls.tls` itself loads neither this nor asyncio: a client needs none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tpm_mtls.errors import UsageError
from tpm_mtls.tls.transport import TlsProtocol, TlsTimeouts

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

HANDSHAKE_THREADS = 4
"""Handshakes at once; a TPM makes one signature at a time anyway."""

_BACKLOG = 128
_ACCEPT_PAUSE = 1  # seconds without accepting when the system is out of resources, as asyncio's own server does


class Report(Protocol):
    """Logs an event with its facts; those that are none mean nothing."""

    def __call__(self, event: str, *, level: int = ..., **facts: Any) -> None:  # noqa: ANN401 - numbers or text
        """Logs ``event``; ``level`` is one of `logging`."""


def bind(host: str, port: int) -> socket.socket:
    """A listening, non-blocking TCP socket at the first address of ``host``; port 0 takes a free one.

    Raises:
        UsageError: the address does not exist here, is taken, or is not allowed to this user.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(
            f"cannot listen on {host} port {port}: {reason}", hint="name another: --listen HOST:PORT"
        ) from error
    listening.setblocking(False)
    return listening


class Listener:
    """Accepts TLS connections on ``listening`` and gives each to a protocol of its own."""

    def __init__(
        self,
        listening: socket.socket,
        application: Callable[[], asyncio.Protocol],
        *,
        context: ssl.SSLContext,
        connections: int,
        report: Report,
        timeouts: TlsTimeouts | None = None,
        handshake_threads: int = HANDSHAKE_THREADS,
    ) -> None:
        """Prepares the listener, which accepts after `start`.

        Args:
            listening: a listening, non-blocking socket, as `bind` makes one; `stop` closes it.
            application: makes the protocol of a connection, after its handshake.
            context: the server-side TLS context.
            connections: how many at once; more wait in the kernel's queue until one ends.
            report: told of refused handshakes, of a limit that is reached, and when accepting fails.
            timeouts: how long a peer may take below the application's protocol.
            handshake_threads: handshakes at once.
        """
        self._listening = listening
        self._application = application
        self._context = context
        self._limit = connections
        self._report = report
        self._timeouts = timeouts or TlsTimeouts()
        self._free = asyncio.Semaphore(connections)
        self._connections: set[TlsProtocol] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._workers = ThreadPoolExecutor(handshake_threads, thread_name_prefix="handshake")
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to accept."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def stop(self) -> None:
        """Stops accepting, and ends the connections that are still shaking hands. The others go on until `drain`."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        self._listening.close()
        for connection in tuple(self._connections):
            if not connection.open:
                connection.abort()

    async def drain(self, seconds: float) -> None:
        """Gives the connections ``seconds`` to end, then cuts them. After `stop`; the listener is of no use any more.

        That they end is the application's part: it knows which of them are idle.
        """
        await self._wait_for_end(seconds)
        for connection in tuple(self._connections):
            connection.abort()
        await self._wait_for_end(self._timeouts.close)
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_end(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._free.locked():
                self._report("connection limit reached", level=logging.WARNING, connections=self._limit)
            await self._free.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listening)
                await loop.connect_accepted_socket(self._protocol, connection)
            except ConnectionError:
                self._free.release()  # the client was gone before we took it
            except OSError as error:
                self._free.release()
                self._report("cannot accept", level=logging.ERROR, error=error.strerror or str(error))
                await asyncio.sleep(_ACCEPT_PAUSE)

    def _protocol(self) -> TlsProtocol:
        protocol = TlsProtocol(
            partial(self._context.wrap_bio, server_side=True),
            self._application,
            workers=self._workers,
            refused=self._refused,
            closed=self._closed,
            timeouts=self._timeouts,
        )
        self._connections.add(protocol)
        self._idle.clear()
        return protocol

    def _refused(self, connection: TlsProtocol, error: ssl.SSLError | TimeoutError) -> None:
        remote = connection.tcp.get_extra_info("peername")
        if isinstance(error, TimeoutError):
            reason, cause = "timed out", None
        else:
            reason = error.reason or str(error)
            cause = str(error.__cause__) if error.__cause__ else None  # our own key did not sign; the context says why
        self._report("handshake refused", remote=remote[0] if remote else None, reason=reason, cause=cause)

    def _closed(self, connection: TlsProtocol) -> None:
        self._connections.discard(connection)
        self._free.release()
        if not self._connections:
            self._idle.set()
