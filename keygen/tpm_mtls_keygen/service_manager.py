"""A word to systemd: what ``systemctl status`` shows of a unit with ``Type=notify`` or ``NotifyAccess=main``."""

from __future__ import annotations

import contextlib
import os
import socket


def notify_status(text: str) -> None:
    """Says ``text`` to the service manager, if one listens (sd_notify(3): STATUS= to $NOTIFY_SOCKET).

    A courtesy: nothing fails when nobody can be told.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(f"STATUS={text}".encode(), b"\0" + address[1:].encode() if address[0] == "@" else address)
