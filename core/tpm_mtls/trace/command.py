"""What ``tpm-mtls trace`` does: checks what it was given, runs the program, shows its commands."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tpm_mtls.files import refuse_existing, storage_errors
from tpm_mtls.programs import cannot_run
from tpm_mtls.relay import check_options, relay_tcti, tpm_behind
from tpm_mtls.tcti import ENVIRONMENT, resolve_tcti
from tpm_mtls.trace.presentation import JsonLines, TextLines
from tpm_mtls.trace.records import Summary, parse_record
from tpm_mtls.trace.runner import run_traced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VARIABLES = (ENVIRONMENT, "TPM2OPENSSL_TCTI", "TPM2TOOLS_TCTI", "TPM2_PKCS11_TCTI")
"""By which environment variables programs are told where the TPM is."""

_NO_TPM = "none"  # tpm2-tools: work without one


@dataclass(frozen=True)
class Request:
    """What is to be run, and how it is shown; see the command's help.

    Attributes:
        command: the program and its arguments.
        tcti: where the TPM is, as the user gave it.
        out: file for the trace; none for stderr.
        as_json: whether for a script.
        pcap: capture file to make.
        metrics: file of counters.
        model: name or path of a latency model.
    """

    command: Sequence[str]
    tcti: str | None = None
    out: Path | None = None
    as_json: bool = False
    pcap: Path | None = None
    metrics: Path | None = None
    model: str | None = None


def run(request: Request) -> int:
    """Runs the program and shows its commands.

    Returns:
        Its exit status; as a shell's 127 where there is no such program, 126 where it cannot be run, 128 and the
        number of the signal that ended it.

    Raises:
        TpmUnavailableError: there is no TPM, or the relay is not installed.
        UsageError: a file that was named is not what it should be.
        StateError: the capture file exists already.
        StorageError: the trace cannot be written.
    """
    options = _options(request)
    places = _places(request.tcti)
    if options:
        check_options(options, hint="see tpm-mtls trace --help")
    with _output(request.out) as out:
        lines = JsonLines() if request.as_json else TextLines(color=_takes_color(out))
        show = _Show(out, lines)
        try:
            status = run_traced(
                request.command,
                lambda pipe: (
                    os.environ | {name: traced(tcti, ["--trace", str(pipe), *options]) for name, tcti in places.items()}
                ),
                show.told,
            )
        except OSError as error:
            return cannot_run(request.command[0], error)
        show.write(lines.summary(show.summary, command=Path(request.command[0]).name, status=status))
        if show.failure is not None and request.out is not None:
            raise show.failure
        if show.failure is not None:
            _discard(out)  # about stderr nobody could be told
    return status


def traced(tcti: str, options: Sequence[str]) -> str:
    """The TCTI string of the TPM at ``tcti`` through a relay with ``options`` that changes nothing.

    Where ``tcti`` is a relay's already, that one gets the options: what reaches the TPM is behind it.
    """
    if tcti == _NO_TPM:
        return tcti
    if tpm_behind(tcti) != tcti:
        return f"{tcti} {shlex.join(options)}"
    return relay_tcti(tcti, options=["--pass-through", *options])


class _Show:
    """Writes what it is told, and sums it up."""

    def __init__(self, out: TextIO, lines: TextLines | JsonLines) -> None:
        self._out = out
        self._lines = lines
        self.summary = Summary()
        self.failure: OSError | None = None

    def told(self, line: bytes) -> None:
        """One line of the trace; runs in the reader's thread."""
        record = parse_record(line)
        if record is not None:
            self.summary.add(record)
            self.write(self._lines.line(record))

    def write(self, text: str) -> None:
        """Writes ``text``, unless that has failed before: the program goes on without being watched."""
        if self.failure is None:
            try:
                self._out.write(f"{text}\n")
                self._out.flush()
            except OSError as error:
                self.failure = error


def _options(request: Request) -> list[str]:
    options = []
    if request.pcap is not None:
        refuse_existing(request.pcap)
        options += ["--pcap", str(request.pcap.absolute())]
    if request.metrics is not None:
        options += ["--metrics", str(request.metrics.absolute())]
    if request.model is not None:
        is_file = "/" in request.model or request.model.endswith(".toml")
        options += ["--latency-model", str(Path(request.model).absolute()) if is_file else request.model]
    return options


def _places(tcti: str | None) -> dict[str, str]:
    """Where the TPM is by each of `VARIABLES`: what was given, else what the variable says, else the default."""
    resolved = resolve_tcti(tcti)
    if tcti is not None:
        return dict.fromkeys(VARIABLES, resolved)
    return {name: resolved if name == ENVIRONMENT else os.environ.get(name) or resolved for name in VARIABLES}


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stderr
        return
    with storage_errors(path, "write"), path.open("w", encoding="utf-8") as file:
        yield file


def _discard(out: TextIO) -> None:
    """Sends what ``out`` still holds nowhere: it cannot be written, and Python 3.13 ends with status 120 for that."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), out.fileno())


def _takes_color(out: TextIO) -> bool:
    """Whether ``out`` is a terminal that shows colours; NO_COLOR (no-color.org) says that its user wants none."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
