"""What a server with an event loop tells systemd of its life: ready, alive, reloading, stopping (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from tpm_mtls.service_manager import notify, watchdog_interval

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@contextlib.asynccontextmanager
async def serving(status: str) -> AsyncIterator[None]:
    """For ``Type=notify`` and ``WatchdogSec=``: ready as the block begins, stopping as it ends.

    While it lasts the watchdog is fed, by the event loop: if that stands still, systemd starts the server anew. Nothing
    happens where no service manager listens.

    Args:
        status: one line for ``systemctl status``.
    """
    notify("READY=1", f"STATUS={status}")
    feeding = asyncio.create_task(_feed_watchdog())
    try:
        yield
    finally:
        notify("STOPPING=1")
        feeding.cancel()


@contextlib.contextmanager
def reloading() -> Iterator[None]:
    """The block is a reload, whether it succeeds or leaves in force what was."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


async def _feed_watchdog() -> None:
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval / 2)
