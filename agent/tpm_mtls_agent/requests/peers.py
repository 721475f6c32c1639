"""Who is at the other end of a connection: user, groups, process and control group, as the kernel says.

The kernel fixes user, groups and process when the client connects (unix(7), SO_PEERCRED; SO_PEERGROUPS since Linux
4.13). The control group, which tells containers apart, it does not: that is read from ``/proc/PID/cgroup``
(cgroups(7)), and a PID alone may belong to another process by then. SO_PEERPIDFD (Linux 6.5) gives a descriptor of the
very process that connected: as long as that process is there, its PID is its own. On an older kernel the descriptor is
opened from the PID, so that only a PID used again by a process of the same user between connect and accept deceives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

UNKNOWN_CGROUP: Final = ""
"""Of a process that is gone, or of another PID namespace; no rule about control groups applies to it."""

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python names neither
_SO_PEERPIDFD = 77

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_ID = struct.Struct("=I")
_GROUPS_LIMIT = 1024  # bytes, what Python reads at most: 256 groups
_CGROUP_LIMIT = 64 * 1024  # bytes; a line for each hierarchy, of up to 4096 bytes

_UNIFIED = re.compile(rb"^0::(/.*)$", re.MULTILINE)
_SYSTEMD = re.compile(rb"^[0-9]+:name=systemd:(/.*)$", re.MULTILINE)  # version 1, where systemd keeps its own hierarchy


@dataclass(frozen=True)
class Peer:
    """A client.

    Attributes:
        pid: its process, 0 if that is in no PID namespace of ours.
        uid: its effective user.
        gids: its effective group, then its other groups.
        cgroup: its control group, such as ``/system.slice/app.service``, or `UNKNOWN_CGROUP`.
    """

    pid: int
    uid: int
    gids: tuple[int, ...]
    cgroup: str

    @property
    def account(self) -> tuple[int, str]:
        """Whose share of the agent it uses: its user's.

        Root's processes are told apart by their control group, as most containers run as root, and one container's
        wrong names would hold up all others. Another user may make control groups of its own, and would get a new
        share with each.
        """
        return (self.uid, self.cgroup if self.uid == 0 else "")


def peer_of(connection: socket.socket, *, processes: Path = Path("/proc")) -> Peer:
    """The client of an accepted Unix ``connection``; ``processes`` is where procfs is."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    others = [group for group in _groups(connection) if group != gid]
    return Peer(pid, uid, (gid, *others), _cgroup(connection, pid, uid, processes))


def _groups(connection: socket.socket) -> list[int]:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_LIMIT)
    except OSError:
        return []  # a kernel before 4.13, or more of them: its first group is all that is known
    return [group for (group,) in _ID.iter_unpack(data)]


def _cgroup(connection: socket.socket, pid: int, uid: int, processes: Path) -> str:
    if pid <= 0:
        return UNKNOWN_CGROUP
    folder = processes / str(pid)
    try:
        with _process(connection, pid) as (descriptor, exact):
            with (folder / "cgroup").open("rb") as file:
                data = file.read(_CGROUP_LIMIT)
            if not exact and folder.stat().st_uid not in {uid, 0}:  # procfs gives what cannot be traced to root
                return UNKNOWN_CGROUP
            with contextlib.suppress(PermissionError):  # it is another user's, and there: kill(2), EPERM
                signal.pidfd_send_signal(descriptor, 0)  # still there, so the PID was its own when the file was read
    except OSError:
        return UNKNOWN_CGROUP
    return parse_cgroup(data)


@contextlib.contextmanager
def _process(connection: socket.socket, pid: int) -> Iterator[tuple[int, bool]]:
    """A descriptor of the process, and whether it is the very one that connected."""
    try:
        data, exact = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, _ID.size), True
        (descriptor,) = _ID.unpack(data)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        descriptor, exact = os.pidfd_open(pid), False
    try:
        yield descriptor, exact
    finally:
        os.close(descriptor)


def parse_cgroup(data: bytes) -> str:
    """The control group in a ``/proc/PID/cgroup``: version 2's, else the one that systemd keeps in version 1."""
    # version 2 is mounted but unused next to version 1 (systemd's legacy mode): all are in its root
    unified, systemd = _UNIFIED.search(data), _SYSTEMD.search(data)
    found = systemd if systemd and (unified is None or unified[1] == b"/") else unified
    return found[1].decode(errors="backslashreplace") if found else UNKNOWN_CGROUP
