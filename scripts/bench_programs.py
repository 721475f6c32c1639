"""The programs that the bench compares: each makes requests on order and says how long each took."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tpm_mtls.openssl.configuration import environment, write_configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_CONNECTED = b"*"  # what openssl s_time says after a connection that did not resume a session
_PATIENCE = 120.0  # seconds for one turn


@dataclass(frozen=True)
class Target:
    """Who asks whom.

    Attributes:
        port: the server's.
        trust: the client's trust anchors.
        certificate: the client's chain.
        key: its key reference.
        tcti: how the program reaches the TPM; none for a software key.
        version: ``TLSv1_3`` or ``TLSv1_2``.
    """

    port: int
    trust: Path
    certificate: Path
    key: str
    tcti: str | None
    version: str = "TLSv1_3"


@dataclass
class Turn:
    """What a program did in one turn or several; microseconds.

    Attributes:
        total: all of it.
        each: the single requests.
    """

    total: float = 0.0
    each: list[float] = field(default_factory=list)

    def add(self, other: Turn) -> None:
        """Counts another turn to this one."""
        self.total += other.total
        self.each += other.each

    @property
    def rate(self) -> float:
        """Requests in a second."""
        return len(self.each) / self.total * 1e6


class Program(Protocol):
    """Something that makes requests."""

    def run(self, count: int, threads: int) -> Turn:
        """``count`` requests in ``threads`` threads."""


class Worker:
    """A process that is told on stdin how many requests to make, and tells on stdout how long they took."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self._line() != "ready":
            raise RuntimeError("a program of the bench did not start")

    def run(self, count: int, threads: int) -> Turn:
        """Lets it make ``count`` requests in ``threads`` threads."""
        if self._process.stdin is None:
            raise RuntimeError("a program of the bench has no stdin")
        self._process.stdin.write(f"{count} {threads}\n")
        self._process.stdin.flush()
        total, *each = map(float, self._line().split())
        return Turn(total, each)

    def _line(self) -> str:
        output = self._process.stdout
        if output is None or not select.select([output], [], [], _PATIENCE)[0]:
            raise RuntimeError("a program of the bench does not answer")
        line = output.readline().strip()
        if not line:
            raise RuntimeError(f"a program of the bench ended: {self._process.args!r}")
        return line


class STime:
    """``openssl s_time``, started anew for each turn: it cannot wait, nor load a key that is no file.

    It prints a character after each connection; the time between two of them is a request's. It stops by itself after a
    second or two.
    """

    def __init__(self, target: Target, variables: dict[str, str]) -> None:
        self._environment = variables
        self._command = [
            *("openssl", "s_time", "-connect", f"localhost:{target.port}", "-new", "-www", "/", "-time", "1"),
            *("-verify", "3", "-CAfile", str(target.trust), "-cert", str(target.certificate), "-key", target.key),
            "-tls1_2" if target.version == "TLSv1_2" else "-tls1_3",
        ]

    def run(self, count: int, threads: int) -> Turn:  # noqa: ARG002 - it takes seconds, not a count
        """As many requests as it makes in a second or two; it has no threads."""
        if threads != 1:
            raise ValueError("openssl s_time has one thread")
        turn = Turn()
        with (
            tempfile.TemporaryFile() as said,  # more than fits into a pipe
            subprocess.Popen(
                self._command, env=self._environment, stdout=subprocess.PIPE, stderr=said, bufsize=0
            ) as process,
        ):
            if process.stdout is None:
                raise RuntimeError("openssl s_time has no stdout")
            last = None
            while characters := process.stdout.read(4096):
                moment, made = time.perf_counter(), characters.count(_CONNECTED)
                if last is not None:
                    turn.each += [(moment - last) * 1e6 / made] * made if made else []
                last = moment
            if process.wait() != 0 or not turn.each:
                said.seek(0)
                raise RuntimeError(f"openssl s_time failed: {said.read()[-2000:]!r}")
        turn.total = sum(turn.each)
        return turn


@contextlib.contextmanager
def our_client(target: Target, mode: str = "full", **variables: str) -> Iterator[Worker]:
    """The project's client; ``mode`` is ``full``, ``resumed`` or ``kept``."""
    command = [
        *(sys.executable, str(_HERE / "bench_client.py"), "--port", str(target.port), "--trust", str(target.trust)),
        *("--certificate", str(target.certificate), "--key", target.key, "--version", target.version, "--mode", mode),
        *(("--tcti", target.tcti) if target.tcti else ()),
    ]
    with _worker(command, clean_environment() | variables) as worker:
        yield worker


@contextlib.contextmanager
def c_program(target: Target, program: Path, configuration: Path, **variables: str) -> Iterator[Worker]:
    """``bench_handshake.c``, compiled."""
    command = [str(program), str(target.port), str(target.trust), str(target.certificate), target.key, target.version]
    with _worker(command, provider_environment(target.tcti, configuration) | variables) as worker:
        yield worker


def compile_c_program(folder: Path) -> Path:
    """``bench_handshake.c`` as a program in ``folder``."""
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "openssl"], check=True, capture_output=True, text=True
    ).stdout.split()
    program = folder / "bench_handshake"
    subprocess.run(["gcc", "-O2", "-o", program, _HERE / "bench_handshake.c", *flags, "-pthread"], check=True)
    return program


def clean_environment() -> dict[str, str]:
    """This process's, without what would change a program's OpenSSL."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENSSL_", "TPM_MTLS_"))}


def provider_environment(tcti: str | None, configuration: Path) -> dict[str, str]:
    """An environment in which OpenSSL loads the provider by ``configuration``, as ``tpm-mtls openssl-env`` says it."""
    if tcti is None:
        return clean_environment()
    write_configuration(configuration)
    return clean_environment() | environment(configuration, tcti)


@contextlib.contextmanager
def _worker(command: list[str], variables: dict[str, str]) -> Iterator[Worker]:
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Worker(process)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(_PATIENCE)
