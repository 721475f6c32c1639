"""Files to which several relays write at once: a program, its children, and theirs."""

from __future__ import annotations

import errno
import os

PRIVATE_FILE = 0o600


class AppendedFile:
    """A file, or a named pipe that somebody reads; each `write` arrives in one piece.

    What was once not written ends the writing: a full disk or a reader that went away stops no TPM command, and leaves
    no half line in the middle of others.
    """

    def __init__(self, path: str) -> None:
        """Opens ``path``; makes it, for this user alone, if it is not there.

        Raises:
            OSError: it cannot be opened, is a pipe that nobody reads, or somebody else's.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        # without O_NONBLOCK the opening of a pipe waits for its reader, who may be gone for good
        self._descriptor = os.open(path, flags | os.O_NONBLOCK, PRIVATE_FILE)
        # a program that outlives its `tpm-mtls trace` still has the path, and the folder may be somebody else's by now
        if os.fstat(self._descriptor).st_uid != os.geteuid():
            self.close()
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        os.set_blocking(self._descriptor, True)

    @property
    def size(self) -> int:
        """Bytes that are in it."""
        return os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Appends ``data``; nothing any more after `close`, or once that failed."""
        if self._descriptor < 0:
            return
        try:
            whole = os.write(self._descriptor, data) == len(data)
        except OSError:
            whole = False
        if not whole:
            self.close()

    def close(self) -> None:
        """Ends the writing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
