"""TPM commands, counted by libtss2's own capture right before the TPM: behind the relay, where there is one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

from bench_handshakes import BOUND, C_ALONE, KEPT, OURS, OURS_ALONE, RESUMED
from bench_stage import SimulatedTpm
from bench_table import Table

from tpm_mtls.trace import read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench_handshakes import Programs
    from bench_stage import Stage

_REQUESTS = 5
_FIRST = f"{OURS}, first process after a restart"
_LINES = (  # resumed and kept connections need a first one: it counts as part of being ready
    (_FIRST, OURS),
    *((name, name) for name in (OURS, RESUMED, KEPT, BOUND, C_ALONE, OURS_ALONE)),
)
_KEY_BUDGETS = ((7, "no storage root key yet"), (4, "with a storage root key"))


def count(
    stage: Stage, programs: Programs, name: str, *, version: str, runtime: Path
) -> tuple[Counter[str], Counter[str]]:
    """Commands until the program is ready, and those of a request after that; the relay remembers in ``runtime``."""
    stage.capture.unlink(missing_ok=True)
    runtime.mkdir(mode=0o700, exist_ok=True)
    variables = {"TCTI_PCAP_FILE": str(stage.capture), "XDG_RUNTIME_DIR": str(runtime)}
    ways = stage.counting_tcti
    with programs.start(name, version=version, ways=lambda relay: ways(relay=relay), **variables) as program:
        ready = _captured(stage.capture)
        program.run(_REQUESTS, 1)
        all_of_it = _captured(stage.capture)
    each = Counter({command: number / _REQUESTS for command, number in (all_of_it - ready).items()})
    return ready, each  # type: ignore[return-value]  # a whole number of commands each time, or the table shows that


def request_counts(stage: Stage, sessions: dict[str, Programs], versions: Sequence[str]) -> Table:
    """What a request costs, by key, TLS version and program; ``sessions`` has programs for each algorithm."""
    rows = []
    for algorithm, version in itertools.product(sessions, versions):
        runtime = stage.folder / f"runtime-{algorithm}"
        for title, name in _LINES:
            if title == _FIRST and runtime.exists():
                continue
            ready, each = count(stage, sessions[algorithm], name, version=version, runtime=runtime)
            rows.append((algorithm, version.replace("TLSv1_", "TLS 1."), title, shown(ready), shown(each)))
    head = ("key", "", "program", "until the context is ready", "a request")
    return Table("TPM commands of a client with a persistent key", _NOTE, head, tuple(rows))


def key_counts(folder: Path) -> Table:
    """What a new key and its certificate request cost, without and with a storage root key."""
    folder.mkdir()
    tpm = SimulatedTpm(folder / "simulator")
    try:
        rows = []
        for (budget, title), handle in zip(_KEY_BUDGETS, ("0x81000100", "0x81000101"), strict=True):
            create = _counted(tpm, folder, "keygen", "create", "--handle", handle)
            request = _counted(tpm, folder, "keygen", "csr", "--key", f"handle:{handle}", "--out", f"{handle}.csr")
            rows.append((title, f"{budget}", shown(create), shown(request)))
    finally:
        tpm.stop()
    head = ("", "budget", "`keygen create`", "`keygen csr`, a second process")
    return Table("TPM commands for a new key and its certificate request", "", head, tuple(rows))


def shown(commands: Counter[str]) -> str:
    """The sum, and each."""
    each = ", ".join(f"{name} {_number(number)}" if number != 1 else name for name, number in commands.items())
    return f"{_number(sum(commands.values()))}" + (f" ({each})" if each else "")


def _number(value: float) -> str:
    return f"{value:g}"


def _captured(capture: Path) -> Counter[str]:
    return Counter(each.name for each in read_trace(capture)) if capture.exists() else Counter()


def _counted(tpm: SimulatedTpm, folder: Path, *arguments: str) -> Counter[str]:
    capture = folder / "commands.pcapng"
    capture.unlink(missing_ok=True)
    variables = {"TPM_MTLS_TCTI": f"pcap:{tpm.tcti}", "TCTI_PCAP_FILE": str(capture)}
    subprocess.run(
        [sys.executable, "-m", "tpm_mtls", *arguments],
        cwd=folder,
        env=os.environ | variables,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
    return _captured(capture)


_NOTE = """\
Counted by libtss2's `pcap` transport, which stands between the relay and the simulated TPM (or between the provider and
the TPM, where there is no relay). With a chip behind /dev/tpmrm0 the kernel adds to each command of a key that is not
persistent three of its own. For a resumed session and for a kept connection, the first connection belongs to getting
ready."""
