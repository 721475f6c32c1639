"""The relay before a simulated TPM: its layers in this process, or the program as libtss2 starts it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import tpm_mtls_relay
from tpm_mtls_relay.layers import build_layers
from tpm_mtls_relay.messages.wire import HEADER
from tpm_mtls_relay.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.tpm import SimulatedTpm
    from tpm_mtls_relay.layers import Layers


@contextmanager
def relay_layers(tpm: SimulatedTpm, *options: str) -> Iterator[Layers]:
    """All layers, in this process; commands and responses are bytes: ``layers(command)``."""
    layers = build_layers(parse_options(["--tcti", tpm.tcti, *options]))
    try:
        yield layers
    finally:
        layers.close()


class RelayProcess:
    """The relay as a program; ``tcti`` is the TPM behind it.

    As libtss2 starts it, which coverage does not see; with ``measured`` it starts slower and is seen.
    """

    def __init__(
        self, tcti: str, *options: str, measured: bool = False, preexec: Callable[[], None] | None = None
    ) -> None:
        isolated = ["-I", "-S", str(Path(tpm_mtls_relay.__file__).with_name("__main__.py"))]
        program = [sys.executable, *(["-m", "tpm_mtls_relay"] if measured else isolated)]
        self.process = subprocess.Popen(
            [*program, "--tcti", tcti, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            preexec_fn=preexec,  # noqa: PLW1509 - one call of prctl, as libtss2 makes it
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def __call__(self, command: bytes) -> bytes:
        """The response to ``command``."""
        self.write(command)
        return self.read()

    def write(self, data: bytes) -> None:
        """Writes to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def read(self) -> bytes:
        """Its next response; empty when it closed its stdout."""
        header = self._read(HEADER.size)
        return header and header + self._read(HEADER.unpack(header)[1] - HEADER.size)

    def close(self) -> int:
        """Closes its stdin, waits for its end; the exit status."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self.wait()

    def wait(self) -> int:
        """Waits for its end; the exit status."""
        status = self.process.wait(timeout=10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            if pipe is self.process.stderr:
                self.stderr = pipe.read().decode()
            pipe.close()
        return status

    def _read(self, size: int) -> bytes:
        stdout: IO[bytes] | None = self.process.stdout
        assert stdout is not None
        data = b""
        while len(data) < size:
            piece = stdout.read(size - len(data))
            if not piece:
                return b""
            data += piece
        return data


@contextmanager
def relay_process(tpm: SimulatedTpm, *options: str, measured: bool = False) -> Iterator[RelayProcess]:
    """The program, ended at the end."""
    relay = RelayProcess(tpm.tcti, *options, measured=measured)
    try:
        yield relay
    finally:
        if relay.process.poll() is None:
            relay.close()
