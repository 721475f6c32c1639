"""A word to systemd: that a unit with ``Type=notify`` is ready, how it is, and that it is still alive."""

from __future__ import annotations

import contextlib
import os
import re
import socket


def notify_status(text: str) -> None:
    """Says ``text`` to the service manager, for ``systemctl status``; see `notify`."""
    notify(f"STATUS={text}")


def notify(*assignments: str) -> None:
    """Tells the service manager, if one listens (sd_notify(3): lines such as READY=1 to $NOTIFY_SOCKET).

    A courtesy: nothing fails when nobody can be told.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return
    message = "\n".join(re.sub(r"\s*\n\s*", " ", each) for each in assignments)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(message.encode(), b"\0" + address[1:].encode() if address[0] == "@" else address)


def watchdog_interval() -> float | None:
    """Seconds within which the service manager wants a WATCHDOG=1; none if it wants none (sd_watchdog_enabled(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,15}", microseconds):
        return None
    return int(microseconds) / 1_000_000
