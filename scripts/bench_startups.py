"""How long commands take to start, and how often longer than an empty Python."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_table import Table

import tpm_mtls_relay

_PYTHON = [sys.executable]
_TPM_MTLS = [sys.executable, "-m", "tpm_mtls"]

BASE = "python -c pass"
COMMANDS = {
    BASE: [*_PYTHON, "-c", "pass"],
    "python -I -S -c pass": [*_PYTHON, "-I", "-S", "-c", "pass"],
    "the relay, without a command": [*_PYTHON, "-I", "-S", str(Path(tpm_mtls_relay.__file__).with_name("__main__.py"))],
    "python -c 'import ssl'": [*_PYTHON, "-c", "import ssl"],
    "tpm-mtls --help": [*_TPM_MTLS, "--help"],
    "tpm-mtls client get --help": [*_TPM_MTLS, "client", "get", "--help"],
    "tpm-mtls keygen create --help": [*_TPM_MTLS, "keygen", "create", "--help"],
}


def start_ups(runs: int, tcti: str) -> Table:
    """Medians of ``runs`` whole processes, taken in turns; ``tcti`` is where the relay finds a TPM."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            arguments = ["--tcti", tcti] if "relay" in name else []
            seconds[name].append(_whole([*command, *arguments]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = tuple(
        (
            f"`{name}`" if " " in name and not name.startswith("the ") else name,
            f"{median * 1000:.0f} ms",
            f"{median / medians[BASE]:.1f}",
        )
        for name, median in medians.items()
    )
    note = f"From the start of the process to its end; the median of {runs}, taken in turns."
    return Table("Start of a process", note, ("command", "median", "against an empty Python"), rows)


def _whole(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - begun
