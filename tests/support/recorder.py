"""An asyncio protocol that remembers what it got, and lets a test answer."""

from __future__ import annotations

import asyncio
from typing import cast


class Recorder(asyncio.Protocol):
    """Remembers what it got."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.data = bytearray()
        self.events: list[str] = []
        self.made = asyncio.Event()
        self.arrived = asyncio.Event()
        self.lost = asyncio.Event()

    async def receive(self, size: int) -> bytes:
        while len(self.data) < size:
            self.arrived.clear()
            await self.arrived.wait()
        return bytes(self.data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made.set()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.arrived.set()

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, _: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set()
