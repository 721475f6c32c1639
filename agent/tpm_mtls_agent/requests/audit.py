"""The audit log: a JSON line for each request, with who asked and what came of it, without names and values.

A name stands there as the store's keyed hash, which nobody can compute or try out without this TPM. The file is opened
for appending, mode 0600, and a line is one write, so that lines never mix. `reopen` goes on in a new file when a log
rotation moved the old one away. A line is not forced to the disk: a power cut may lose the last half minute, and flash
memory lives longer.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.errors import StorageError
from tpm_mtls.files import PRIVATE_FILE, make_file, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls_agent.requests.peers import Peer

BURST: Final = 1000
"""Lines in one go about requests that cost a client nothing, as they never reached the TPM."""

RATE: Final = 1.0
"""Such lines for each second from then on, 20 MB a day at most; the others go at the TPM's pace."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A line.

    Attributes:
        time: when it was answered, UTC (RFC 3339).
        result: ``ok``, or the class of the error.
        action: what was asked, if it could be read.
        secret: the keyed hash of the name, hex; none if the name could not be read, or no TPM ever answered.
        index: the NV index that a set answered.
        rc: the TPM's response code, hex.
        uid: effective user.
        gid: effective group.
        pid: process.
        cgroup: control group.
        milliseconds: from the connection to the answer.
        left_out: how many requests went without a line since the line before.
    """

    time: str
    result: str
    action: str | None = None
    secret: str | None = None
    index: str | None = None
    rc: str | None = None
    uid: int
    gid: int
    pid: int
    cgroup: str
    milliseconds: int
    left_out: int = 0


class AuditLog:
    """An open log file."""

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens ``path``, or makes it.

        Raises:
            StorageError: it cannot be opened, is no regular file, or others may read it.
        """
        self._path = path
        self._now = now
        self._monotonic = monotonic
        self._lines = float(BURST)
        self._since = monotonic()
        self._left_out = 0
        self._descriptor, self._torn = _open(path)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def reopen(self) -> None:
        """Goes on in the file that is at the path now; in the old one if that fails.

        Raises:
            StorageError: it cannot be opened.
        """
        before = self._descriptor
        self._descriptor, self._torn = _open(self._path)
        os.close(before)

    def write(  # noqa: PLR0913 - the facts of a line
        self,
        peer: Peer,
        result: str,
        *,
        seconds: float,
        action: str | None = None,
        secret: str | None = None,
        index: str | None = None,
        rc: int = 0,
        cheap: bool = False,
    ) -> None:
        """Appends a line; see `Entry`.

        Args:
            peer: who asked.
            result: what came of it.
            seconds: from the connection to the answer.
            action: what was asked.
            secret: the keyed hash of the name.
            index: the NV index that a set answered.
            rc: the TPM's response code.
            cheap: whether anybody can make such requests as fast as the machine can: no line if there were too many of
                them lately, as the log must not fill the disk.

        Raises:
            StorageError: it cannot be written whole.
        """
        if cheap and not self._spend():
            self._left_out += 1
            return
        entry = Entry(
            time=self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            result=result,
            action=action,
            secret=secret,
            index=index,
            rc=f"{rc:#x}" if rc else None,
            uid=peer.uid,
            gid=peer.gids[0],
            pid=peer.pid,
            cgroup=peer.cgroup,
            milliseconds=round(seconds * 1000),
            left_out=self._left_out,
        )
        self._append(msgspec.json.encode(entry) + b"\n")
        self._left_out = 0

    def _spend(self) -> bool:
        now = self._monotonic()
        self._lines = min(float(BURST), self._lines + (now - self._since) * RATE)
        self._since = now
        if self._lines < 1:
            return False
        self._lines -= 1
        return True

    def _append(self, line: bytes) -> None:
        line = b"\n" + line if self._torn else line
        with storage_errors(self._path, "write"):
            written = os.write(self._descriptor, line)
        self._torn = written < len(line)
        if self._torn:
            raise StorageError(
                f"cannot write {self._path}: there was room for a part of a line only",
                hint="make room on that file system",
                path=str(self._path),
            )


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether the last line has no end: a power cut, or a full disk."""
    make_file(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with storage_errors(path, "open"), ExitStack() as unless_returned:
        descriptor = os.open(path, flags, PRIVATE_FILE)
        unless_returned.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077:
            end = os.pread(descriptor, 1, status.st_size - 1) if status.st_size else b"\n"
            unless_returned.pop_all()
            return descriptor, end != b"\n"
    raise StorageError(
        f"{path} is no file of this user alone (mode {stat.S_IMODE(status.st_mode):04o})",
        hint="name another file for the audit log, or chmod 600 it",
        path=str(path),
    )
