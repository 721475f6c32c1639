"""Reading with a cap and writing atomically; every ``OSError`` becomes a `StorageError` that names the file."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING

from tpm_mtls.errors import PemError, StateError, StorageError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PEM_LIMIT = 64 * 1024
"""Bytes read from a key, certificate or chain file: a chain of ten RSA-4096 certificates is about 20 KiB."""

PRIVATE_FILE = 0o600
PUBLIC_FILE = 0o644

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def storage_error(error: OSError, path: Path, doing: str) -> StorageError:
    """The `StorageError` for ``error``, which happened while ``doing`` ("read", "write", …) ``path``."""
    reason = (error.strerror or str(error)).lower()
    message = f"cannot {doing} {path}: {reason}"
    if error.errno in _FULL:
        return StorageFullError(
            message, hint="make room on that file system, then run the command again", path=str(path)
        )
    hints = {
        errno.ENOENT: "check the path",
        errno.EACCES: "run it as a user who may, or change the owner or mode",
        errno.EPERM: "run it as a user who may, or change the owner or mode",
        errno.EROFS: "the file system is mounted read-only; name another folder",
        errno.EISDIR: "that is a folder; name a file",
        errno.ENOTDIR: "a part of that path is not a folder",
    }
    hint = hints.get(error.errno or 0, "check the file system")
    return StorageError(message, hint=hint, path=str(path))


@contextlib.contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns every ``OSError`` of the block into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, doing) from error


def is_there(path: Path) -> bool:
    """Whether there is something at ``path``; `Path.exists` raises where the folder may not be looked into.

    Raises:
        StorageError: it cannot be known: this user may not look, or the disk cannot be read.
    """
    with storage_errors(path, "read"):
        return path.exists()


def read_capped(path: Path, *, limit: int = PEM_LIMIT) -> bytes:
    """The content of the regular file ``path``.

    Raises:
        StorageError: it cannot be read, or is no regular file (a pipe would block, a device never end).
        PemError: it has more than ``limit`` bytes.
    """
    with storage_errors(path, "read"):
        # non-blocking, so that opening a pipe returns and the check below can refuse it
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
                raise OSError(code, os.strerror(code))
            data = file.read(limit + 1)
    if len(data) > limit:
        raise PemError(f"{path} is larger than {limit} bytes", hint="this is not the file that was meant")
    return data


def write_atomic(path: Path, data: bytes, *, mode: int = PUBLIC_FILE, replace: bool = True) -> None:
    """Writes ``path`` so that a crash at any instant leaves the old content or the new, and never another mode.

    Temporary file in the same folder, fsync, rename, fsync of the folder. Without ``replace`` a hard link stands for
    the rename: of two writers at the same instant one gets the error, and neither's file is lost.

    Raises:
        StateError: not to be replaced, and something is at ``path``, be it a symbolic link to nowhere.
        StorageError: it cannot be written; the old content is still there and no temporary file is left.
    """
    with storage_errors(path, "write"):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)  # the umask may have taken bits away
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            if replace:
                temporary.replace(path)
            else:
                _link_new(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _link_new(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError as error:
        raise _exists(path) from error
    temporary.unlink()


def refuse_existing(path: Path) -> None:
    """Says early what `write_atomic` without ``replace`` would say; what appears after this is its affair.

    Raises:
        StateError: something is at ``path``, be it a symbolic link to nowhere.
    """
    if os.path.lexists(path):
        raise _exists(path)


def _exists(path: Path) -> StateError:
    return StateError(
        f"{path} exists already and is not overwritten", hint="name another file, or remove that one yourself"
    )


def remove_file(path: Path) -> None:
    """Removes ``path`` durably; a missing one is no error.

    Raises:
        StorageError: it cannot be removed.
    """
    with storage_errors(path, "remove"):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries durable (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int = 0o750) -> None:
    """Makes ``folder`` and its parents; an existing one keeps its mode.

    Raises:
        StorageError: it cannot be made or written to.
    """
    with storage_errors(folder, "make"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            folder.mkdir(mode=mode, exist_ok=True)
            folder.chmod(mode)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_private(path: Path) -> None:
    """Refuses a private file that others can read or that somebody else owns.

    A systemd credential is this unit's alone, whatever its mode: systemd may let the unit's user in by an access
    control list, whose mask shows as the group's rights. For root, who administers a service, a file may be of the
    user whose folder it lies in.

    Raises:
        StorageError: group or others have rights on it, or it belongs to another user than these.
    """
    with storage_errors(path, "read"):
        status = path.stat()
        owners = {0, os.geteuid() or path.parent.stat().st_uid}
    if str(path.parent) == os.environ.get("CREDENTIALS_DIRECTORY"):
        return
    if status.st_mode & 0o077:
        raise StorageError(
            f"{path} can be read by other users (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"chmod 600 {path}",
            path=str(path),
        )
    if status.st_uid not in owners:
        raise StorageError(
            f"{path} belongs to another user (uid {status.st_uid})", hint=f"chown it: {path}", path=str(path)
        )
