"""What a process has loaded into a TPM without resource manager, written down in case that it is killed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from tpm_mtls.files import PRIVATE_FILE, make_file, storage_errors

_SIZE: Final = 4096  # bytes of the file: one write(2) of a page is complete or has not begun, whoever kills the process
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Loaded(msgspec.Struct, frozen=True):
    """An object or a session.

    Attributes:
        kind: which of the two, and of which kind.
        handle: where it is; 0 while that is not known.
        public: how an object's public area (TPMT_PUBLIC) begins, hex.
    """

    kind: Literal["object", "hmac", "policy"]
    handle: int = 0
    public: str = ""


class _File(msgspec.Struct, frozen=True):
    boot: str = ""
    loaded: list[Loaded] = []


class Ledger:
    """The file of a living process; nobody else may have it open, which is the caller's affair.

    That the disk is full keeps nobody from the TPM: then there is nothing to find after a kill.
    """

    def __init__(self, path: Path, *, boot: Path = _BOOT) -> None:
        """Opens ``path``, or makes it; ``boot`` says which start of the machine this is.

        Raises:
            StorageError: it cannot be opened.
        """
        self._boot = ""
        with suppress(OSError):  # a sandbox may hide it; then nothing is flushed
            self._boot = boot.read_text().strip()
        make_file(path)
        with storage_errors(path, "open"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, PRIVATE_FILE)
            found = _parse(os.pread(self._descriptor, _SIZE, 0))
        self._loaded = list(found.loaded) if self._boot and found.boot == self._boot else []
        self._expected: Loaded | None = None

    @property
    def left(self) -> tuple[Loaded, ...]:
        """What is written down: at first, what the process before may have left."""
        return tuple(self._loaded)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def expect(self, what: Loaded) -> None:
        """A command is about to be sent that loads ``what``; so it stays written down where no answer arrives."""
        self._expected = what
        self._write()

    def loaded(self, handle: int) -> None:
        """It has loaded it, at ``handle``."""
        if self._expected is not None:
            self._loaded.append(msgspec.structs.replace(self._expected, handle=handle))
            self.refused()

    def refused(self) -> None:
        """It has loaded nothing."""
        self._expected = None
        self._write()

    def gone(self, handle: int) -> None:
        """What was at ``handle`` is there no more."""
        self._loaded = [each for each in self._loaded if each.handle != handle]
        self._write()

    def settle(self) -> None:
        """What the process before left is flushed."""
        self._loaded = []
        self._write()

    def _write(self) -> None:
        expected = [self._expected] if self._expected else []
        data = msgspec.json.encode(_File(self._boot, [*self._loaded, *expected]))
        with suppress(OSError):
            os.pwrite(self._descriptor, data.ljust(_SIZE), 0)


def _parse(data: bytes) -> _File:
    """What the file says; what is damaged, or of another version, says nothing."""
    try:
        return msgspec.json.decode(data.strip(b" \0") or b"{}", type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _File()
