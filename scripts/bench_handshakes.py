"""Requests on new connections: how long with which key, by which program, on which TPM. All in turns, in one run."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench_programs import STime, Turn, c_program, compile_c_program, our_client, provider_environment
from bench_table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from bench_programs import Program, Target
    from bench_stage import Stage

C_ALONE = "C program, provider alone"
S_TIME = "`openssl s_time`, provider alone"
OURS_ALONE = "our client, provider alone"
OURS = "our client, relay"
C_RELAY = "C program, relay"
SOFTWARE = "our client, software key"
RESUMED = "our client, relay, resumed session"
BOUND = "our client, relay, key bound to a PCR"
KEPT = "our client, relay, kept connection"

ALL = (C_ALONE, S_TIME, OURS_ALONE, OURS, C_RELAY, BOUND, RESUMED, KEPT, SOFTWARE)
_MILLISECOND = 1000  # microseconds

THREADED = (C_ALONE, OURS_ALONE, OURS, SOFTWARE)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: turns of each program.
        requests: in each turn, on the bare simulator.
        slow_requests: the same with the model of a chip.
        model: the relay's latency model; none to measure the bare simulator only.
        threads: how many at once, for the second table.
        version: of TLS.
    """

    rounds: int = 5
    requests: int = 20
    slow_requests: int = 5
    model: str | None = None
    threads: tuple[int, ...] = (1, 8, 32)
    version: str = "TLSv1_3"


class Programs:
    """Starts the programs that are compared, against the servers at ``port`` (no sessions) and ``resuming``."""

    def __init__(self, stage: Stage, port: int, resuming: int, *, algorithm: str = "ecc-p256") -> None:
        self._stage = stage
        self._port = port
        self._resuming = resuming
        self._keys = stage.keys(algorithm)
        self._c = compile_c_program(stage.folder)
        self._configuration = stage.folder / "openssl.cnf"

    def start(
        self, name: str, *, version: str, ways: Callable[[bool], str], **variables: str
    ) -> AbstractContextManager[Program]:
        """The program of the table's line ``name``; ``ways`` is the TCTI string with or without the relay."""
        alone = self._target(ways(False), version)
        through = self._target(ways(True), version)
        starts: dict[str, Callable[[], AbstractContextManager[Program]]] = {
            C_ALONE: lambda: c_program(alone, self._c, self._configuration, **variables),
            C_RELAY: lambda: c_program(through, self._c, self._configuration, **variables),
            S_TIME: lambda: contextlib.nullcontext(self._s_time(ways(False), version, variables)),
            OURS_ALONE: lambda: our_client(alone, **variables),
            OURS: lambda: our_client(through, **variables),
            SOFTWARE: lambda: our_client(
                self._stage.target(self._port, self._stage.software, None, version), **variables
            ),
            RESUMED: lambda: our_client(self._target(ways(True), version, self._resuming), "resumed", **variables),
            BOUND: lambda: our_client(
                self._stage.target(self._port, self._keys.bound, ways(True), version), **variables
            ),
            KEPT: lambda: our_client(through, "kept", **variables),
        }
        return starts[name]()

    def _target(self, tcti: str, version: str, port: int | None = None) -> Target:
        return self._stage.target(port or self._port, self._keys.handle, tcti, version)

    def _s_time(self, tcti: str, version: str, variables: Mapping[str, str]) -> STime:
        target = self._stage.target(self._port, self._keys.file, tcti, version)
        return STime(target, provider_environment(tcti, self._configuration) | variables)


def handshakes(stage: Stage, programs: Programs, plan: Plan, names: tuple[str, ...] = ALL) -> Table:
    """Medians of requests, one at a time, and how many times those of the first line."""
    turns: dict[tuple[str, bool], Turn] = {}
    with contextlib.ExitStack() as stack:
        running = {
            (name, slow): stack.enter_context(_start(stage, programs, plan, name, slow=slow))
            for slow in ([False, True] if plan.model else [False])
            for name in names
        }
        for _ in range(plan.rounds):
            for (name, slow), program in running.items():
                turn = program.run(plan.slow_requests if slow else plan.requests, 1)
                turns.setdefault((name, slow), Turn()).add(turn)
    rows = tuple((name, *_columns(turns, name, names[0], plan)) for name in names)
    head = ("", "simulator", "ratio", *(("chip model", "ratio") if plan.model else ()))
    return Table("A request on a new connection: median, one at a time", _NOTE, head, rows)


def many_threads(stage: Stage, programs: Programs, plan: Plan, names: tuple[str, ...] = THREADED) -> Table:
    """Requests in a second with several threads that share one context."""
    columns = [(slow, threads) for slow in ([False, True] if plan.model else [False]) for threads in plan.threads]
    turns: dict[tuple[str, bool, int], Turn] = {}
    with contextlib.ExitStack() as stack:
        running = {
            (name, slow): stack.enter_context(_start(stage, programs, plan, name, slow=slow))
            for slow in dict.fromkeys(slow for slow, _ in columns)
            for name in names
        }
        for slow, threads in columns:
            for _ in range(2):
                for name in names:
                    count = max(threads, plan.slow_requests * 2 if slow else plan.requests * 2)
                    turn = running[name, slow].run(count, threads)
                    turns.setdefault((name, slow, threads), Turn()).add(turn)
    rows = tuple((name, *(f"{turns[name, slow, threads].rate:.0f}" for slow, threads in columns)) for name in names)
    titles = (
        f"{'chip model' if slow else 'simulator'}, {threads} thread{'s' * (threads > 1)}" for slow, threads in columns
    )
    return Table("Requests on new connections in a second, by threads that share one context", "", ("", *titles), rows)


def _start(stage: Stage, programs: Programs, plan: Plan, name: str, *, slow: bool) -> AbstractContextManager[Program]:
    model = plan.model if slow else None
    return programs.start(name, version=plan.version, ways=lambda relay: stage.tcti(relay=relay, model=model))


def _columns(turns: dict[tuple[str, bool], Turn], name: str, first: str, plan: Plan) -> list[str]:
    columns = []
    for slow in [False, True] if plan.model else [False]:
        median = statistics.median(turns[name, slow].each)
        columns += [_milliseconds(median), f"{median / statistics.median(turns[first, slow].each):.2f}"]
    return columns


def _milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1000:.{1 if microseconds > _MILLISECOND else 2}f} ms"


_NOTE = """\
Client, server (nginx, with a software key and without sessions, where nothing else is said) and simulated TPM are on
one machine. A request is: connect, TLS 1.3 with both certificates (P-256), GET, answer, close. The programs take turns,
so that the machine's moods hit all of them. The ratio is to the first line."""
