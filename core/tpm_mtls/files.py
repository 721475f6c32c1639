"""Reading with a cap and writing atomically; every ``OSError`` becomes a `StorageError` that names the file.

What root makes in the folder of another user belongs to that user (`write_atomic`, `make_file`, `make_folder`): an
administrator types a command once, and the services that run as that user go on with what it made.
"""

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

_DEFAULTS = {"/var/lib/tpm-mtls": "--state-dir", "/run/tpm-mtls": "--run-dir"}
"""The folders of a device's services, which commands take where none is named, and by which option one is."""

_MAY_NOT = "run it as a user who may, or change the owner or mode"
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
        errno.EACCES: _may_not(path),
        errno.EPERM: _may_not(path),
        errno.EROFS: "the file system is mounted read-only; name another folder",
        errno.EISDIR: "that is a folder; name a file",
        errno.ENOTDIR: "a part of that path is not a folder",
    }
    hint = hints.get(error.errno or 0, "check the file system")
    return StorageError(message, hint=hint, path=str(path))


def _may_not(path: Path) -> str:
    options = [option for folder, option in _DEFAULTS.items() if path.is_relative_to(folder)]
    return f"{_MAY_NOT}; or name a folder of your own: {options[0]}" if options else _MAY_NOT


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


def write_atomic(
    path: Path, data: bytes, *, mode: int = PUBLIC_FILE, replace: bool = True, hand_over: bool = True
) -> None:
    """Writes ``path`` so that a crash at any instant leaves the old file or the new, never another mode or owner.

    Temporary file in the same folder, fsync, rename, fsync of the folder. Without ``replace`` a hard link stands for
    the rename: of two writers at the same instant one gets the error, and neither's file is lost.

    Args:
        path: the file.
        data: its content.
        mode: its permissions, whatever the umask.
        replace: overwrite what is there.
        hand_over: where root writes into the folder of another user, the file is that user's. Not for a secret in the
            clear that somebody asked for: it stays with who asked.

    Raises:
        StateError: not to be replaced, and something is at ``path``, be it a symbolic link to nowhere.
        StorageError: it cannot be written; the old content is still there and no temporary file is left.
    """
    with storage_errors(path, "write"), _opened(path.parent) as folder:
        # all in the folder that is open: its owner may put another one, or a symbolic link, where it was
        temporary = f".{path.name}.{secrets.token_hex(4)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, mode, dir_fd=folder)
            with os.fdopen(descriptor, "wb") as file:
                if hand_over:
                    _hand_over(descriptor, folder)
                os.fchmod(descriptor, mode)  # the umask may have taken bits away
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            if replace:
                os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                _link_new(temporary, path, folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)


def _link_new(temporary: str, path: Path, folder: int) -> None:
    try:
        os.link(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError as error:
        raise _exists(path) from error
    os.unlink(temporary, dir_fd=folder)


def make_file(path: Path, *, mode: int = PRIVATE_FILE) -> None:
    """Makes an empty ``path`` where nothing is yet: a lock, a log or a database, before it is opened for that.

    Raises:
        StorageError: it cannot be made.
    """
    if not os.path.lexists(path):
        with contextlib.suppress(StateError):  # somebody was quicker
            write_atomic(path, b"", mode=mode, replace=False)


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
    with _opened(folder) as descriptor:
        os.fsync(descriptor)


def make_folder(folder: Path, *, mode: int = 0o750, like: Path | None = None) -> None:
    """Makes ``folder`` and its parents; an existing one keeps its mode and owner.

    Args:
        folder: the folder.
        mode: its permissions, whatever the umask; the parents' are what the umask leaves.
        like: a folder whose owner it gets where root makes it, instead of its parent's.

    Raises:
        StorageError: it cannot be made or written to.
    """
    with storage_errors(folder, "make"):
        for parent in reversed(folder.parents):
            if not parent.is_dir():
                _make_one(parent, None, parent.parent)
        if not folder.is_dir():
            _make_one(folder, mode, like or folder.parent)
    with storage_errors(folder, "write to"):
        if not os.access(folder, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))


def _make_one(folder: Path, mode: int | None, like: Path) -> None:
    with _opened(folder.parent, os.O_PATH) as parent, _opened(like, os.O_PATH) as owned:
        try:
            os.mkdir(folder.name, 0o777 if mode is None else mode, dir_fd=parent)
        except FileExistsError:
            if folder.is_dir():  # somebody was quicker
                return
            raise
        made = os.open(folder.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            with os.scandir(made) as entries:
                if not any(entries):  # or somebody put another one there since, which keeps its owner
                    _hand_over(made, owned)
            if mode is not None:
                os.fchmod(made, mode)
        finally:
            os.close(made)


@contextlib.contextmanager
def _opened(folder: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(folder, flags | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _hand_over(made: int, folder: int) -> None:
    """Gives the descriptor ``made``, which root has just made, to the user whose folder it is in.

    That user could put another one in its place anyway. Where everybody may, as in ``/tmp``, it stays root's.
    """
    owner = os.fstat(folder)
    if os.geteuid() == 0 and owner.st_uid != 0 and not owner.st_mode & stat.S_IWOTH:
        os.fchown(made, owner.st_uid, owner.st_gid)


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
    if not stat.S_ISREG(status.st_mode):  # said before its rights: to take those of a folder away would do harm
        raise StorageError(f"{path} is no file", hint="name the file", path=str(path))
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
