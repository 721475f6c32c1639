"""Accepts connections, at most so many at once, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from tpm_mtls.errors import UsageError
from tpm_mtls_server.logs import log
from tpm_mtls_server.tls_transport import TlsProtocol

if TYPE_CHECKING:
    import ssl

    from tpm_mtls_server.http import HttpServer
    from tpm_mtls_server.settings import Limits

_BACKLOG = 128
_ACCEPT_PAUSE = 1  # seconds without accepting when the system is out of resources, as asyncio's own server does


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
    """Accepts TLS connections on ``listening`` for ``http``."""

    def __init__(
        self,
        listening: socket.socket,
        http: HttpServer,
        *,
        context: ssl.SSLContext,
        limits: Limits,
    ) -> None:
        """Prepares the listener, which accepts after `start`.

        Args:
            listening: a listening socket; `drain` closes it.
            http: makes each connection's HTTP protocol.
            context: the server-side TLS context.
            limits: what clients may take.
        """
        self._listening = listening
        self._http = http
        self._context = context
        self._limits = limits
        self._free = asyncio.Semaphore(limits.connections)
        self._connections: set[TlsProtocol] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._workers = ThreadPoolExecutor(limits.handshake_threads, thread_name_prefix="handshake")
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to accept."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def drain(self) -> None:
        """Stops accepting, closes idle connections, lets running requests finish within `Limits.drain` seconds."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        self._listening.close()
        self._http.end()
        for connection in tuple(self._connections):
            if not connection.open:
                connection.abort()  # it is still shaking hands
        await self._wait_for_end(self._limits.drain)
        for connection in tuple(self._connections):
            connection.abort()
        await self._wait_for_end(self._limits.tls.close)
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_end(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._free.locked():
                log("connection limit reached", level=logging.WARNING, connections=self._limits.connections)
            await self._free.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listening)
                await loop.connect_accepted_socket(self._protocol, connection)
            except ConnectionError:
                self._free.release()  # the client was gone before we took it
            except OSError as error:
                self._free.release()
                log("cannot accept", level=logging.ERROR, error=error.strerror or str(error))
                await asyncio.sleep(_ACCEPT_PAUSE)

    def _protocol(self) -> TlsProtocol:
        protocol = TlsProtocol(
            partial(self._context.wrap_bio, server_side=True),
            self._http,
            workers=self._workers,
            refused=self._refused,
            closed=self._closed,
            timeouts=self._limits.tls,
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
        log("handshake refused", remote=remote[0] if remote else None, reason=reason, cause=cause)

    def _closed(self, connection: TlsProtocol) -> None:
        self._connections.discard(connection)
        self._free.release()
        if not self._connections:
            self._idle.set()
