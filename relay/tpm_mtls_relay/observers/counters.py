"""Counters of the commands that reach the TPM, in Prometheus' text form (exposition format 0.0.4).

    tpm_mtls_command_seconds_bucket{command="Sign",le="0.1"} 12
    tpm_mtls_command_seconds_sum{command="Sign"} 0.722
    tpm_mtls_command_seconds_count{command="Sign"} 12
    tpm_mtls_command_errors_total{command="Sign",response_code="0x99d"} 1

Each relay adds its own to what is in the file, so that the file has the sum over all programs and all time; whoever
wants to begin at zero removes it. It suits the node exporter's text file collector.
"""

from __future__ import annotations

import fcntl
import os
import time

from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.messages.command_names import COMMAND_NAMES
from tpm_mtls_relay.messages.wire import code_of

INTERVAL = 1.0
"""Seconds that lie between two writes, of whatever many commands: a file that is replaced wears flash memory."""

SIZE_LIMIT = 1024 * 1024
"""Bytes of a file that is read; 123 commands with ten different errors each need less than half of it."""

BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds: swtpm is in the first, a chip's signature between 0.02 and 0.6, its making of an RSA key in the last."""

_SECONDS = "tpm_mtls_command_seconds"
_ERRORS = "tpm_mtls_command_errors_total"
_HEAD_SECONDS = f"# HELP {_SECONDS} How long the TPM took for a command.\n# TYPE {_SECONDS} histogram\n"
_HEAD_ERRORS = f"# HELP {_ERRORS} Commands that the TPM or the way to it refused.\n# TYPE {_ERRORS} counter\n"
_PUBLIC_FILE = 0o644


class Counts:
    """Numbers by the line that shows them; adding up two of them adds line by line."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def add(self, command: str, response_code: int, seconds: float) -> None:
        """One command that took ``seconds``."""
        for bound in BOUNDS:
            self._add(f'{_SECONDS}_bucket{{command="{command}",le="{bound:g}"}}', seconds <= bound)
        self._add(f'{_SECONDS}_bucket{{command="{command}",le="+Inf"}}', 1)
        self._add(f'{_SECONDS}_sum{{command="{command}"}}', seconds)
        self._add(f'{_SECONDS}_count{{command="{command}"}}', 1)
        if response_code:
            self._add(f'{_ERRORS}{{command="{command}",response_code="{response_code:#x}"}}', 1)

    def merge(self, other: Counts) -> None:
        """Adds ``other``."""
        for line, number in other.numbers.items():
            self._add(line, number)

    def text(self) -> str:
        """All of it in Prometheus' form, commands in the order in which they first came."""
        lines = [
            f"{line} {number:.6f}" if "_sum{" in line else f"{line} {number:.0f}"
            for line, number in self.numbers.items()
        ]
        seconds = "".join(f"{line}\n" for line in lines if line.startswith(_SECONDS))
        errors = "".join(f"{line}\n" for line in lines if line.startswith(_ERRORS))
        return _HEAD_SECONDS + seconds + _HEAD_ERRORS + errors

    def _add(self, line: str, number: float) -> None:
        self.numbers[line] = self.numbers.get(line, 0) + number


def read_counts(text: str, path: str) -> Counts:
    """The counts of which ``text`` was made, which was in the file ``path``.

    Raises:
        OptionError: by something else.
    """
    counts = Counts()
    for row in text.splitlines():
        if row.startswith("#"):
            continue
        line, _, number = row.rpartition(" ")
        try:
            value = float(number)
        except ValueError as error:
            raise OptionError(f"{path} is no file of counters") from error
        if not line.startswith((f"{_SECONDS}_", f"{_ERRORS}{{")) or not line.endswith("}") or not value >= 0:
            raise OptionError(f"{path} is no file of counters")
        counts.numbers[line] = value
    return counts


class Counters:
    """The listener that counts."""

    def __init__(self, path: str) -> None:
        """Counts into the file ``path``.

        Raises:
            OSError: it cannot be read or written.
            OptionError: there is something else at ``path``.
        """
        self._path = path
        self._new = Counts()
        self._written = 0.0
        self._works = True
        self._write()

    def __call__(self, command: bytes, response: bytes, started: float, seconds: float) -> None:  # noqa: ARG002 - a listener's arguments
        """Counts one command; writes the file, unless it just has been."""
        self._new.add(COMMAND_NAMES.get(code_of(command), "other"), code_of(response), seconds)
        if time.monotonic() - self._written >= INTERVAL:
            self._try_to_write()

    def close(self) -> None:
        """Writes what has not been written yet."""
        self._try_to_write()

    def _try_to_write(self) -> None:
        if not self._works:
            return
        try:
            self._write()
        except (OSError, OptionError):  # a full disk stops no TPM command
            self._works = False

    def _write(self) -> None:
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # for the moment in which another relay adds its own
            total = read_counts(_read(self._path), self._path)
            total.merge(self._new)
            _replace(self._path, total.text().encode())
        finally:
            os.close(lock)
        self._new = Counts()
        self._written = time.monotonic()


def _read(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT or not data.isascii():
        raise OptionError(f"{path} is no file of counters")
    return data.decode("ascii")


def _replace(path: str, data: bytes) -> None:
    temporary = f"{path}.tmp"  # one at a time: under the lock
    if os.path.lexists(temporary):
        os.unlink(temporary)  # noqa: PTH108 - pathlib is slow to import; of a relay that was killed here
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, _PUBLIC_FILE), "wb") as file:
        file.write(data)
    os.rename(temporary, path)  # noqa: PTH104 - the same
