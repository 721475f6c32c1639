"""Child processes of a program with an event loop: with an environment of their own, and ended in order."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Final

PATIENCE: Final = 10.0
"""Seconds for a child to end in order when it is told to; one TPM command takes less."""

_UNIT: Final = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}


def child_environment() -> dict[str, str]:
    """This process's environment, without what the service manager says to this process alone (sd_notify(3))."""
    return {name: value for name, value in os.environ.items() if name not in _UNIT}


async def end_child(child: asyncio.subprocess.Process, *, patience: float = PATIENCE) -> None:
    """Ends ``child`` if it still runs: by SIGTERM, so that nothing of it stays in the TPM; by SIGKILL after that."""
    if child.returncode is not None:
        return
    with suppress(ProcessLookupError):  # it may end at this very moment
        child.terminate()
    try:
        async with asyncio.timeout(patience):
            await child.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
