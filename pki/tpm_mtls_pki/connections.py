"""Connections that make no progress are closed: aiohttp itself waits for a request's headers for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_protocol import RequestHandler

_SWEEP = 1.0  # seconds between two looks


class ConnectionWatch:
    """Closes connections of a server that have no request in progress for longer than ``idle`` seconds.

    That is the time for the headers of the first request, for a pause between two, and for reading an answer. The
    handler limits the time for a body, and the TLS handshake has its own limit: neither counts here.
    """

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._since: dict[RequestHandler, float] = {}
        self._busy: set[RequestHandler] = set()

    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        """The middleware that notes which connections have a request in progress."""

        @web.middleware
        async def note(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            self._busy.add(request.protocol)
            try:
                return await handler(request)
            finally:
                self._busy.discard(request.protocol)
                self._since[request.protocol] = asyncio.get_running_loop().time()

        return note

    async def run(self, server: web.Server) -> None:
        """Watches ``server`` until cancelled."""
        while True:
            await asyncio.sleep(min(_SWEEP, self._idle / 4))
            now = asyncio.get_running_loop().time()
            self._since = {each: self._since.get(each, now) for each in server.connections}
            for each, since in self._since.items():
                if each not in self._busy and now - since > self._idle and each.transport is not None:
                    each.transport.abort()
