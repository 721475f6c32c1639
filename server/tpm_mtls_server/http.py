"""The seam to aiohttp: JSON answers, connections that remember who is calling, and no page or log of aiohttp's own."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from tpm_mtls_server.logs import log

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from tpm_mtls_server.peer import AnyPeer

_SERVER_ERRORS = 500

FIXED_HEADERS = {"Cache-Control": "no-store", "Server": "tpm-mtls"}
"""Headers of every answer."""

_BODY_LIMIT = 64 * 1024
"""Bytes that ``request.read()`` gives at the most; `body.read_body` has a limit for each path instead."""

_LINGER = 2
"""Seconds to swallow the rest of a refused body, so that the client reads our answer before the connection ends."""


class Refusal(Exception):  # noqa: N818 - an answer, not a failure of this program
    """Ends a request with an error answer.

    Attributes:
        status: HTTP status.
        hint: what to do about it; empty if the message says all.
        headers: further headers of the answer.
        close: whether the connection ends too.
    """

    def __init__(
        self, status: int, message: str, *, hint: str = "", headers: dict[str, str] | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint
        self.headers = headers or {}
        self.close = close

    def response(self) -> web.Response:
        """The answer: ``{"error": …}``, with ``"hint"`` if there is one, which never repeats what the client sent."""
        response = answer({"error": str(self)} | ({"hint": self.hint} if self.hint else {}), status=self.status)
        response.headers.update(self.headers)
        if self.close:
            response.force_close()
        return response


def answer(data: dict[str, Any] | msgspec.Struct, *, status: int = 200) -> web.Response:
    """``data`` as a JSON answer that nobody caches."""
    return web.Response(
        status=status, body=msgspec.json.encode(data), content_type="application/json", headers=FIXED_HEADERS
    )


class Connection(web.RequestHandler):
    """The HTTP of one connection.

    Attributes:
        peer: who is calling; none before the first request.
        busy: whether a request is being answered.
    """

    peer: AnyPeer | None = None
    busy: bool = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature; it may repeat what the client sent
    ) -> web.StreamResponse:
        """The answer to what is not HTTP (``status`` 400), or after a failure of this program (500).

        Raises:
            ConnectionError: ``exc`` is one: the client left, and nobody waits for an answer.
        """
        if isinstance(exc, ConnectionError):
            log("client left", remote=request.remote)
            raise exc
        if status < _SERVER_ERRORS:
            log("malformed request", remote=request.remote, status=status)
            return Refusal(status, "bad request", close=True).response()
        log("internal error", level=logging.ERROR, remote=request.remote, status=status, exc_info=exc)
        return Refusal(status, "internal error", close=True).response()


class HttpServer(web.Server):
    """aiohttp's low-level server with `Connection`: calling it makes one connection's protocol."""

    def __init__(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], *, idle: float) -> None:
        super().__init__(self._handle, request_factory=_make_request)
        self._answer = handle
        self._idle = idle
        self._ending = False

    def end(self) -> None:
        """Closes idle connections now, the others after the answer that they wait for.

        aiohttp's own ``pre_shutdown`` would throw away the rest of a body that is still coming.
        """
        self._ending = True
        for connection in self.connections:
            if not (isinstance(connection, Connection) and connection.busy):
                connection.force_close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = connection_of(request)
        connection.busy = True
        try:
            response = await self._answer(request)
        finally:
            connection.busy = False
        if self._ending:
            response.force_close()
        return response

    def __call__(self) -> Connection:
        """The protocol of a new connection, closed after ``idle`` seconds without a complete request head."""
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._idle,
            lingering_time=_LINGER,
            access_log=None,  # type: ignore[arg-type] # aiohttp's way to say none
            auto_decompress=False,  # a small compressed body can grow without end
        )


def connection_of(request: web.BaseRequest) -> Connection:
    """The connection that ``request`` came over."""
    connection = request.protocol
    if not isinstance(connection, Connection):
        raise TypeError("this is for requests to an HttpServer")
    return connection


def tls_of(request: web.BaseRequest) -> ssl.SSLObject:
    """The TLS of the connection that ``request`` came over.

    Raises:
        ConnectionResetError: the client is gone.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
    return tls


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:  # noqa: ANN401 - aiohttp's private types
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_BODY_LIMIT)
