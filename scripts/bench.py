"""Measurements, as counts and as ratios within one run: machines differ, these do not.

./run bench [--only PART …] [--runs N] [--devices N] [--write docs/performance.md]

Counts come from libtss2's own capture right before a simulated TPM. How long a simulated TPM takes says nothing about
a chip; a model of a chip's latency (the relay's ``--latency-model``) says a little more. Times are medians of programs
that take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench_attestation import QUOTES, verifications
from bench_counts import key_counts, request_counts
from bench_enrollment import DEVICES, enrollments
from bench_handshakes import Plan, Programs, handshakes, many_threads
from bench_secrets import secret_tables
from bench_stage import ALGORITHMS, VERSIONS, Stage
from bench_startups import start_ups
from bench_table import Table, write_block

from tpm_mtls.openssl.provider import modules_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = ("startups", "counts", "handshakes", "threads", "enrollment", "secrets", "attestation")
ON_STAGE = frozenset({"startups", "counts", "handshakes", "threads"})


def tables(arguments: argparse.Namespace, folder: Path) -> Iterator[Table]:
    """The parts that are wanted, measured one after the other."""
    wanted = set(arguments.only or PARTS)
    if "counts" in wanted:
        yield key_counts(folder / "keys")
    if wanted & ON_STAGE:
        yield from stage_tables(arguments, folder, wanted)
    if "enrollment" in wanted:
        yield enrollments(folder, arguments.devices)
    if "secrets" in wanted:
        yield from secret_tables(folder / "secrets", arguments.runs, arguments.latency_model or None)
    if "attestation" in wanted:
        yield verifications(folder / "attestation", arguments.quotes)


def stage_tables(arguments: argparse.Namespace, folder: Path, wanted: set[str]) -> Iterator[Table]:
    """Those of the ``wanted`` parts for which there must be a TPM, and mostly servers."""
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(contextlib.closing(Stage(folder)))
        if "startups" in wanted:
            yield start_ups(arguments.runs, stage.tpm.tcti)
        if wanted & {"counts", "handshakes", "threads"}:
            ports = [stack.enter_context(stage.server(sessions=sessions)) for sessions in (False, True)]
            algorithms, versions = arguments.algorithm or ALGORITHMS, arguments.tls or VERSIONS
            programs = {algorithm: Programs(stage, *ports, algorithm=algorithm) for algorithm in algorithms}
            plan = Plan(
                rounds=arguments.runs // 3 or 1,
                requests=arguments.requests,
                model=arguments.latency_model or None,
                version=versions[0],
            )
        if "counts" in wanted:
            yield request_counts(stage, programs, versions)
        if "handshakes" in wanted:
            yield handshakes(stage, programs[algorithms[0]], plan)
        if "threads" in wanted:
            yield many_threads(stage, programs[algorithms[0]], plan)


def circumstances() -> str:
    """The machine and the versions, as a sentence."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    swtpm = subprocess.run(["swtpm", "--version"], check=True, capture_output=True, text=True).stdout
    return (
        f"{os.cpu_count()} processors ({processor}), Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, "
        f"tpm2 provider in {modules_folder().name}, swtpm {swtpm.split(',')[0].rpartition(' ')[2]}"
    )


def main() -> None:
    """Runs all measurements."""
    parser = argparse.ArgumentParser(prog="./run bench", description="Measurements, as counts and as ratios.")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; can be given several times")
    parser.add_argument(
        "--runs", type=int, default=15, help="runs of each start-up; a third of it, turns of each client"
    )
    parser.add_argument("--requests", type=int, default=20, help="requests of a client in a turn")
    parser.add_argument(
        "--algorithm", action="append", choices=ALGORITHMS, help="only keys of this kind; the first one is timed"
    )
    parser.add_argument(
        "--tls", action="append", choices=VERSIONS, help="only this version of TLS; the first one is timed"
    )
    parser.add_argument("--devices", type=int, default=DEVICES, help="how many devices enroll; 1000 take a minute")
    parser.add_argument("--quotes", type=int, default=QUOTES, help="how many quotes are verified of each kind")
    parser.add_argument("--latency-model", default="chip", metavar="NAME|FILE", help="which chip; '' for none")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this document")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tpm-mtls-bench-") as name:
        done = []
        for table in tables(arguments, Path(name)):
            print(table.as_text(), flush=True)
            done.append(table)
    if arguments.write:
        write_block(arguments.write, f"Measured on {circumstances()}.", done)
    print(f"\nall of it in {time.monotonic() - begun:.0f} seconds", file=sys.stderr)


if __name__ == "__main__":
    main()
