"""Secrets: what the agent's answers cost in TPM commands, and how long they take beside tpm2-tools."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from bench_counts import shown
from bench_slow_tpm import slow_tpm
from bench_stage import SimulatedTpm
from bench_table import Table

from tpm_mtls.secrets import Client
from tpm_mtls.trace import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SMALL = "v" * 32  # in NV memory
_LARGE = "v" * 5000  # in a file
_PCRS = "sha256:16"
_PLAIN, _BOUND, _FILE = "plain", "bound", "large"
_BOUND_FILE = "large-bound"
_INDEX, _BOUND_INDEX = "0x01000000", "0x01000001"  # of tpm2-tools
_SEALED, _BOUND_SEALED = "0x81000120", "0x81000121"
_NVREAD, _UNSEAL = "`tpm2_nvread`", "`tpm2_unseal`"
_RECIPE = "`tpm2_createprimary`, `tpm2_load`, `tpm2_unseal`"


class Secrets:
    """A simulated TPM with the same secret in several places; the files are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.tpm = SimulatedTpm(folder / "simulator")
        self.capture = folder / "commands.pcapng"
        (folder / "secret").write_text(_SMALL)
        for bound in (False, True):
            with self.agent(self.tpm.tcti, bound=bound) as client:
                client.set(_BOUND if bound else _PLAIN, _SMALL)
                client.set(_BOUND_FILE if bound else _FILE, _LARGE)
        self._with_tools()

    @contextlib.contextmanager
    def agent(self, tcti: str, *, bound: bool = False) -> Iterator[Client]:
        """A running agent; with ``bound`` it binds what is set to a PCR."""
        path = self._folder / "agent.sock"
        command = ["agent", "run", "--socket", path, "--state-dir", self._folder / "state", "--tcti", tcti]
        with subprocess.Popen(
            [sys.executable, "-m", "tpm_mtls", *map(str, command), *(["--pcrs", _PCRS] if bound else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TCTI_PCAP_FILE": str(self.capture)},
        ) as process:
            try:
                if process.stdout is None or not process.stdout.readline():
                    raise RuntimeError("the agent did not start")
                yield Client(path)
            finally:
                process.terminate()

    def process(self, name: str) -> None:
        """``tpm-mtls secret get``, a whole process; an agent must run."""
        command = [sys.executable, "-m", "tpm_mtls", "secret", "get", name, "--socket", self._folder / "agent.sock"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def tool(self, tcti: str, *command: str) -> None:
        """One of tpm2-tools, a whole process."""
        variables = {"TPM2TOOLS_TCTI": tcti, "TCTI_PCAP_FILE": str(self.capture)}
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, env=os.environ | variables)

    def flush(self) -> None:
        """Removes what tpm2-tools leave in a TPM without resource manager."""
        self.tool(self.tpm.tcti, "tpm2_flushcontext", "-t")

    def count_tool(self, step: Callable[[], object]) -> Counter[str]:
        """The commands of one of tpm2-tools, by the capturing TCTI."""
        self.capture.unlink(missing_ok=True)
        step()
        self.flush()
        return Counter(self.commands())

    def commands(self) -> list[str]:
        """What the capturing TCTI has written down."""
        return [each.name for each in read_trace(self.capture)] if self.capture.exists() else []

    def close(self) -> None:
        """Switches the TPM off."""
        self.tpm.stop()

    def _with_tools(self) -> None:
        def tool(*command: str) -> None:
            self.tool(self.tpm.tcti, *command)

        tool("tpm2_createpolicy", "--policy-pcr", "-l", _PCRS, "-L", "policy")
        plain = ("-s", f"{len(_SMALL)}")
        tool("tpm2_nvdefine", *plain, "-a", "authread|authwrite", _INDEX)
        tool("tpm2_nvdefine", *plain, "-a", "policyread|authwrite", "-L", "policy", _BOUND_INDEX)
        for index in (_INDEX, _BOUND_INDEX):
            tool("tpm2_nvwrite", "-i", "secret", index)
        for handle, policy in ((_SEALED, ()), (_BOUND_SEALED, ("-L", "policy"))):
            tool("tpm2_create", "-C", "0x81000001", "-i", "secret", "-u", "public", "-r", "private", *policy)
            tool("tpm2_load", "-C", "0x81000001", "-u", "public", "-r", "private", "-c", "loaded")
            tool("tpm2_evictcontrol", "-C", "o", "-c", "loaded", handle)
            self.flush()
        tool("tpm2_createprimary", "-G", "ecc", "-c", "primary")
        tool("tpm2_create", "-C", "primary", "-i", "secret", "-u", "recipe.public", "-r", "recipe.private")
        self.flush()


def reads(secrets: Secrets, tcti: str, client: Client) -> dict[str, list[Callable[[], object]]]:
    """The ways to one secret, by their lines in the table: one step each, or several."""

    def tool(*command: str) -> Callable[[], object]:
        return lambda: secrets.tool(tcti, *command)

    def get(name: str) -> list[Callable[[], object]]:
        return [lambda: client.get(name)]

    return {
        _NVREAD: [tool("tpm2_nvread", _INDEX)],
        _UNSEAL: [tool("tpm2_unseal", "-c", _SEALED)],
        _RECIPE: [
            tool("tpm2_createprimary", "-G", "ecc", "-c", "primary"),
            tool("tpm2_load", "-C", "primary", "-u", "recipe.public", "-r", "recipe.private", "-c", "loaded"),
            tool("tpm2_unseal", "-c", "loaded"),
        ],
        "get": get(_PLAIN),
        "get, 5 kB in a file": get(_FILE),
        "`tpm-mtls secret get`, a process": [lambda: secrets.process(_PLAIN)],
        f"{_NVREAD}, bound to a PCR": [tool("tpm2_nvread", "-P", f"pcr:{_PCRS}", _BOUND_INDEX)],
        f"{_UNSEAL}, bound to a PCR": [tool("tpm2_unseal", "-c", _BOUND_SEALED, "-p", f"pcr:{_PCRS}")],
        "get, bound to a PCR": get(_BOUND),
        "get, 5 kB in a file, bound to a PCR": get(_BOUND_FILE),
    }


def latencies(secrets: Secrets, rounds: int, model: str | None) -> Table:
    """Medians of single reads, taken in turns, and how many times those of tpm2_nvread and tpm2_unseal."""
    columns = [_medians(secrets, secrets.tpm.tcti, rounds)]
    if model:
        with slow_tpm(secrets.tpm.tcti, model) as tcti:
            columns.append(_medians(secrets, tcti, max(rounds // 3, 1)))
    rows = tuple((name, *(cell for column in columns for cell in _cells(name, column))) for name in columns[0])
    titles = ("median", "to `tpm2_nvread`", "to `tpm2_unseal`")
    head = ("", *(f"{where}, {title}" for where in ("simulator", "chip model")[: len(columns)] for title in titles))
    return Table("Reading a secret of 32 bytes: median, one at a time", _NOTE, head, rows)


def secret_counts(secrets: Secrets) -> Table:
    """What the agent's answers and tpm2-tools cost."""
    counting = f"pcap:{secrets.tpm.tcti}"
    rows: dict[str, Counter[str]] = {}

    def count(title: str, action: Callable[[], object]) -> None:
        before = len(secrets.commands())
        action()
        rows[title] = Counter(secrets.commands()[before:])

    with secrets.agent(counting) as client:
        rows["the agent's start"] = Counter(secrets.commands())
        count("set, a new name", lambda: client.set("new", _SMALL))
        count("set, in place", lambda: client.set(_PLAIN, _SMALL))
        count("set, 5 kB in a file, in place", lambda: client.set(_FILE, _LARGE))
        count("del", lambda: client.delete("new"))
        ways = reads(secrets, counting, client)
        for title, (read, *_) in ways.items():
            if title.startswith("get"):
                count(title, read)
    for title, steps in ways.items():
        if title.startswith("`tpm2"):
            rows[title] = sum((secrets.count_tool(step) for step in steps), Counter())
    return Table(
        "TPM commands for a secret",
        "Counted by libtss2's `pcap` transport, right before the TPM.",
        ("", "commands"),
        tuple((title, shown(commands)) for title, commands in rows.items()),
    )


def secret_tables(folder: Path, runs: int, model: str | None) -> Iterator[Table]:
    """Both tables."""
    with contextlib.closing(Secrets(folder)) as secrets:
        yield secret_counts(secrets)
        yield latencies(secrets, runs, model)


def _medians(secrets: Secrets, tcti: str, rounds: int) -> dict[str, float]:
    """Seconds."""
    taken: dict[str, list[float]] = {}
    with secrets.agent(tcti) as client:
        ways = reads(secrets, tcti, client)
        for _ in range(rounds):
            for name, steps in ways.items():
                taken.setdefault(name, []).append(sum(_seconds(secrets, step) for step in steps))
    return {name: statistics.median(each) for name, each in taken.items()}


def _seconds(secrets: Secrets, step: Callable[[], object]) -> float:
    begun = time.perf_counter()
    step()
    taken = time.perf_counter() - begun
    secrets.flush()
    return taken


def _cells(name: str, medians: dict[str, float]) -> tuple[str, str, str]:
    bound = ", bound to a PCR" if name.endswith("PCR") else ""
    median = medians[name]
    return (
        f"{median * 1000:.1f} ms",
        *(f"{median / medians[tool + bound]:.2f}" for tool in (_NVREAD, _UNSEAL)),
    )


_NOTE = """\
`get` is one request to the agent by `tpm_mtls.secrets.Client`, connection included; a tool of tpm2-tools is a process.
They take turns. Bound ones are compared with bound ones. tpm2-tools read in the clear: here an NV index without an
authorization value, and a persistent object; the agent's answers come through a salted session."""
