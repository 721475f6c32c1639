"""The relays that this process has started."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def relays(process: int | None = None) -> set[int]:
    """Process ids of the living relays that are children of ``process``, by default of this one."""
    return {pid for pid in _children(process or os.getpid()) if b"/tpm_mtls_relay" in _command_line(pid)}


def _children(process: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found += [int(pid) for pid in (thread / "children").read_text().split()]
    return found


def _command_line(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for one that is dead and not yet waited for
    return b""
