"""What a relay has in a TPM without resource manager, written down for the case that somebody kills it.

A resource manager flushes what a client leaves behind. A TPM without one (swtpm's socket, /dev/tpm0) keeps it until
its next reset, and is full after three objects. So a relay that loads into such a TPM has a file in `runtime_folder`,
locked (flock(2)) for as long as it lives, and the TPM's next relay flushes what a dead one's file says (`leftovers`).

The file is a table of records, each of one object or session. A record is written before the command that loads it is
sent (it says what will be loaded) and again when the response says the handle: a relay that dies in between leaves
enough to find it. One write(2) of a record is complete or has not begun, whatever kills the process.
"""

from __future__ import annotations

import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_RECORD = struct.Struct(">BIH1017s")
"""Kind, handle (0 while it is not known), size of the public area, public area."""

FREE, OBJECT, SEQUENCE, SESSION = range(4)

_RECORDS = 64  # of one file; TPMs without resource manager hold 3 objects and 64 sessions
_SUFFIX = ".ledger"


class Record:
    """An object or session.

    Attributes:
        kind: `OBJECT`, `SEQUENCE` or `SESSION`.
        handle: where it is; 0 while that is not known.
        public: how an object's public area begins: all of it, or all before the part that the TPM chooses.
    """

    __slots__ = ("handle", "kind", "public")

    def __init__(self, kind: int, handle: int = 0, public: bytes = b"") -> None:
        self.kind = kind
        self.handle = handle
        self.public = public


class Ledger:
    """This relay's file in ``folder``, for the TPM at ``tcti``; made at the first record.

    Attributes:
        folder: where it is, and those of others.
        tcti: where the TPM is.
    """

    def __init__(self, folder: str, tcti: str) -> None:
        self.folder = folder
        self.tcti = tcti
        self._descriptor = -1
        self._path = ""
        self._records: list[Record | None] = []
        self._pending = -1
        self._failed = False

    def others(self) -> bool:
        """Whether other relays, living or dead, have files for the same TPM."""
        return bool(files(self.folder, self.tcti))

    def expect(self, record: Record) -> None:
        """A command is about to be sent that loads ``record``."""
        self._pending = self._free_slot()
        self._write(self._pending, record)

    def loaded(self, handle: int) -> None:
        """The command has loaded it, at ``handle``."""
        record = self._take_pending()
        if record is not None:
            self._write(self._records.index(record), Record(record.kind, handle, record.public))

    def refused(self) -> None:
        """The command has loaded nothing."""
        record = self._take_pending()
        if record is not None:
            self._write(self._records.index(record), None)

    def gone(self, handle: int) -> None:
        """What was loaded at ``handle`` is not there any more."""
        for slot, record in enumerate(self._records):
            if record is not None and record.handle == handle:
                self._write(slot, None)

    def close(self) -> None:
        """Removes the file, unless a command was not answered: what that loaded is for the next relay to find."""
        if self._descriptor < 0:
            return
        if not any(self._records) and os.path.exists(self._path):  # noqa: PTH110 - pathlib is slow to import
            os.unlink(self._path)  # noqa: PTH108 - the same
        os.close(self._descriptor)
        self._descriptor = -1

    def _open(self) -> None:
        while self._descriptor < 0:
            self._path = f"{self.folder}/{prefix(self.tcti)}{os.getpid()}-{time.time_ns()}{_SUFFIX}"
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if lock(descriptor) and os.fstat(descriptor).st_nlink:
                self._descriptor = descriptor
            else:  # another relay took it for a dead one's, before it was locked
                os.close(descriptor)

    def _free_slot(self) -> int:
        for slot, record in enumerate(self._records):
            if record is None:
                return slot
        self._records.append(None)
        return len(self._records) - 1

    def _take_pending(self) -> Record | None:
        slot, self._pending = self._pending, -1
        return self._records[slot] if slot >= 0 else None

    def _write(self, slot: int, record: Record | None) -> None:
        self._records[slot] = record
        if slot >= _RECORDS or self._failed:
            return
        try:
            if self._descriptor < 0:
                self._open()
            os.pwrite(self._descriptor, _pack(record), slot * _RECORD.size)
        except OSError:  # the folder vanished, or its disk is full: nobody shall be without a TPM for that
            self._failed = True


def prefix(tcti: str) -> str:
    """How the names of the files for the TPM at ``tcti`` begin; all but ASCII letters and digits is escaped."""
    return "".join(c if c.isascii() and c.isalnum() else f"%{ord(c):x}." for c in tcti) + "@"


def files(folder: str, tcti: str) -> list[str]:
    """The paths of all relays' files for the TPM at ``tcti``."""
    begin = prefix(tcti)
    return [f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(begin) and name.endswith(_SUFFIX)]  # noqa: PTH208 - pathlib is slow to import


def lock(descriptor: int) -> bool:
    """Takes the lock that only a living process holds; false when another one has it."""
    import fcntl  # noqa: PLC0415 - not behind a resource manager

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def records(descriptor: int) -> Iterator[Record]:
    """What a file says; records that are damaged are left out."""
    data = os.pread(descriptor, _RECORDS * _RECORD.size, 0)
    for kind, handle, size, public in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]):
        if kind in {OBJECT, SEQUENCE, SESSION} and size <= len(public):
            yield Record(kind, handle, public[:size])


def _pack(record: Record | None) -> bytes:
    if record is None or len(record.public) > _RECORD.size - 7:
        return bytes(_RECORD.size)
    return _RECORD.pack(record.kind, record.handle, len(record.public), record.public)
