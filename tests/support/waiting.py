"""Waiting for what has no event of its own, as long as a loaded machine takes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 20.0  # seconds; only a broken test waits so long
_PAUSE = 0.01


def until(holds: Callable[[], object], what: str) -> None:
    """Waits until ``holds``; ``what`` is the failure's text if it never does."""
    end = time.monotonic() + _PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(_PAUSE)


async def comes(holds: Callable[[], object], what: str) -> None:
    """The same while the event loop turns."""
    end = time.monotonic() + _PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        await asyncio.sleep(_PAUSE)
