"""A TPM that answers what a test says, at swtpm's place: garbage, too little, too late, or never."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG = None
"""Instead of an answer: none, and the connection stays open."""


class FaultyTpm:
    """Answers its connections' first commands with ``answers``, one each; then it refuses connections.

    Attributes:
        tcti: how programs reach it.
        commands: what it was asked.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.tcti = f"swtpm:host=127.0.0.1,port={self._listener.getsockname()[1]}"
        self.commands: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Ends it; hanging connections end, too."""
        with suppress(OSError):  # it has closed itself
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.commands.append(connection.recv(4096))
            if answer is None:
                self._open.append(connection)
            else:
                connection.sendall(answer)
                connection.close()
        self._listener.close()


@contextmanager
def faulty_tpm(*answers: bytes | None) -> Iterator[FaultyTpm]:
    """The TPM, ended at the end."""
    tpm = FaultyTpm(*answers)
    try:
        yield tpm
    finally:
        tpm.close()
