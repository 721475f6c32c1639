"""The socket that systemd opened for us (sd_listen_fds(3)): programs can connect while the agent restarts.

A container that has the socket bind-mounted keeps the very socket it was given, so it goes on to work only if that one
lives on.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST: Final = 3
"""SD_LISTEN_FDS_START: the first descriptor that systemd passes."""

_HINT = "the .socket unit needs one line ListenStream=/run/tpmd.sock"


def activated_socket(environment: MutableMapping[str, str] = os.environ, *, first: int = FIRST) -> socket.socket | None:
    """The listening socket that came with this process; none if none did.

    The variables that say so are taken out of ``environment``, so that no program we start believes it is meant.

    Raises:
        UsageError: it is not exactly one listening Unix stream socket.
    """
    pid, count = environment.get("LISTEN_PID"), environment.get("LISTEN_FDS")
    if pid != str(os.getpid()) or count is None:
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
    if count != "1":
        raise UsageError(f"the service manager passes {count} sockets, expected one", hint=_HINT)
    try:
        passed = socket.socket(fileno=first)
    except OSError as error:
        raise UsageError(f"what the service manager passes is no socket: {error.strerror}", hint=_HINT) from error
    listening = passed.type == socket.SOCK_STREAM and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.family != socket.AF_UNIX or not listening:
        passed.close()
        raise UsageError("what the service manager passes is no listening Unix stream socket", hint=_HINT)
    passed.set_inheritable(False)
    return passed
