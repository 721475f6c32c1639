"""``tpm-mtls seal``, ``unseal`` and ``pcr`` as a user types them, in one process."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.cli import run

if TYPE_CHECKING:
    import pytest

AUTH, OWNER, WRONG = "correct horse", "the owner's", "battery staple"
"""Authorization values; each is in a file of that name, in lower case."""


class Terminal(io.TextIOWrapper):
    """A standard input that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


@dataclass(frozen=True)
class SealCommand:
    """Runs the commands, in the test's folder, with an identity folder ``state`` there."""

    monkeypatch: pytest.MonkeyPatch
    capfdbinary: pytest.CaptureFixture[bytes]

    def __call__(
        self, command: str, *arguments: str, given: bytes = b"", status: int = 0, terminal: bool = False
    ) -> bytes:
        """What ``tpm-mtls command`` writes to standard output, given standard input; its errors if it fails."""
        self.monkeypatch.setattr("sys.stdin", (Terminal if terminal else io.TextIOWrapper)(io.BytesIO(given)))
        verbs, options = (arguments[:1], arguments[1:]) if command == "pcr" else ((), arguments)
        ended = run([command, *verbs, "--state-dir", "state", *options])
        output, errors = self.capfdbinary.readouterr()
        assert ended == status, errors.decode()
        assert b"Traceback" not in errors
        if not status:
            return output
        assert output == b""
        assert errors.startswith(b"tpm-mtls: error: ")
        assert b"\ntpm-mtls: hint: " in errors
        return errors

    def seal(self, secret: bytes, *arguments: str) -> bytes:
        """The blob for ``secret``."""
        return self("seal", *arguments, given=secret)

    def unseal(self, blob: bytes, *arguments: str) -> bytes:
        """The secret in ``blob``."""
        return self("unseal", *arguments, given=blob)

    def refused(self, command: str, *arguments: str, given: bytes = b"", status: int = 4) -> str:
        """The errors of ``tpm-mtls command``, which must fail with ``status``, having written nothing."""
        return self(command, *arguments, given=given, status=status).decode()
