"""The agent's own socket: made so that nobody gets in too early, and never taken away from a daemon that lives."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import StateError, UsageError
from tpm_mtls.files import PRIVATE_FILE, make_file, storage_error, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_GROUP: Final = "tss"
"""Who may use the TPM's resource manager may ask the agent (tpm-udev's group)."""

BACKLOG: Final = 4096
"""Connections that wait in the kernel; a client that does not wait itself (Node.js) fails when there is no room."""

_ROOT_AND_GROUP = 0o660
_ALONE = 0o600
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_PID_LIMIT = 16  # bytes
_PATH_LIMIT = 107  # bytes of sun_path (unix(7)), without the NUL at its end


@contextlib.contextmanager
def bound_socket(path: Path, *, group: str | None, say: Callable[[str], None]) -> Iterator[socket.socket]:
    """A Unix socket that listens at ``path``; at the end of the block it is closed, and its file removed.

    The socket file that a dead daemon left is replaced. Until the owner and the mode are right nobody can connect.

    Args:
        path: where.
        group: whose members may connect; none for `DEFAULT_GROUP` or, where that is not to be had, only our own user.
        say: told if only our own user may connect.

    Raises:
        StateError: a daemon listens there, or something else than a socket is there.
        UsageError: the path is too long for a socket, or ``group`` is not there or not ours to give.
        StorageError: the socket cannot be made there.
    """
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise UsageError(f"the socket's path is longer than {_PATH_LIMIT} bytes: {path}", hint="name a shorter one")
    with (
        locked(path.with_name(f"{path.name}.lock"), f"another agent serves {path}"),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening,
    ):
        _make_room(path)
        with storage_errors(path, "make the socket"):
            before = os.umask(0o777 & ~_ALONE)
            try:
                listening.bind(str(path))
            finally:
                os.umask(before)
            own = _identity(path)
        try:
            with storage_errors(path, "give away"):
                _admit(path, group, say)
            listening.listen(BACKLOG)
            yield listening
        finally:
            with storage_errors(path, "remove"), contextlib.suppress(FileNotFoundError):
                if _identity(path) == own:  # somebody may have put another one there
                    path.unlink()


@contextlib.contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds the lock file ``path``, which stays: removing it would let two processes hold two files of that name.

    This process's id is in it, for `lock_holder`.

    Raises:
        StateError: ``otherwise``: another process holds it.
        StorageError: it cannot be made.
    """
    make_file(path)
    with storage_errors(path, "lock"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(otherwise, hint="end that process first; see: tpm-mtls agent status") from error
        with storage_errors(path, "write"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def lock_holder(path: Path) -> int | None:
    """The process that holds the lock file ``path``, as `locked` does; none if none does.

    A process id in a file may be an old one: that process must have the very file open.

    Raises:
        StorageError: this user may not find out.
    """
    with storage_errors(path, "read"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with contextlib.closing(os.fdopen(descriptor, "rb")) as file:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = file.read(_PID_LIMIT).strip()
                pid = int(said) if said.isdigit() else 0
                return pid if _has_open(pid, os.fstat(descriptor)) else None
    return None


def _has_open(pid: int, status: os.stat_result) -> bool:
    """Whether the process ``pid``, which is not this one, has the file of ``status`` open."""
    if pid == os.getpid():
        return False
    folder = Path("/proc", str(pid), "fd")
    for entry in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(OSError):  # closed since
            if os.path.samestat(entry.stat(), status):
                return True
    return False


def _make_room(path: Path) -> None:
    """Removes the socket file of a daemon that is dead."""
    if not os.path.lexists(path):
        return
    with storage_errors(path, "make the socket"):
        mode = path.lstat().st_mode
    if not stat.S_ISSOCK(mode):
        raise StateError(
            f"{path} is there already, and is no socket", hint="name another --socket, or remove that yourself"
        )
    if listener(path) is not None:
        raise StateError(
            f"another daemon listens at {path}", hint="end it first, or name another --socket; who: ss -xlp"
        )
    with storage_errors(path, "replace"):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Listener:
    """Who listens at a socket.

    Attributes:
        pid: the process that began to; systemd where it made the socket. None if it has no room for us to find out.
        uid: its user; none as above.
    """

    pid: int | None
    uid: int | None


def listener(path: Path) -> Listener | None:
    """Who listens at the socket file ``path``; none if nobody does. Whoever it is sees a connection without a word.

    Raises:
        StorageError: this user may not find out.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except BlockingIOError:
            return Listener(None, None)
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:  # of another kind, and only a living one is known to be of any
                return Listener(None, None)
            raise storage_error(error, path, "connect to") from error
        data = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return Listener(pid, uid)


def _admit(path: Path, group: str | None, say: Callable[[str], None]) -> None:
    """Owner and mode 0660 of a new socket; until then it is ours alone."""
    try:
        number = grp.getgrnam(group or DEFAULT_GROUP).gr_gid
        os.chown(path, -1, number)
        path.chmod(_ROOT_AND_GROUP)
    except (KeyError, PermissionError) as error:
        reason = "there is no such group" if isinstance(error, KeyError) else "this user is neither root nor a member"
        if group is not None:
            raise UsageError(
                f"the socket cannot be given to the group {group!r}: {reason}",
                hint="run it as root, or name another group",
            ) from error
        say(f"only user {os.geteuid()} may connect: not for the group {DEFAULT_GROUP}, {reason}")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
