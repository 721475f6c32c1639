"""First boot, killed anywhere and run again: it finishes, with one key in the TPM and one certificate."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.enrollment import DEVICE, Bench
from support.lying_ca import LyingCa
from support.power_cut import DIES_AT_FILE_CHANGE, TpmTap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

OBSERVE = ["ReadPublic", "GetCapability", "GetCapability"]  # the storage root key, persistent handles, NV indices
STORAGE_ROOT_KEY = ["CreatePrimary", "EvictControl", "FlushContext"]
KEY = {
    "persistent": ["CreateLoaded", "EvictControl", "Sign", "FlushContext"],
    "tss2": ["CreateLoaded", "Sign", "FlushContext"],
}
RECORD = ["GetCapability", "ReadClock"]
COPY = [
    *("GetCapability", "GetCapability", "NV_DefineSpace"),  # what is there, and how large an index can be
    *("NV_ReadPublic", "NV_Write", "NV_Write"),
]


@pytest.fixture
def bench(tpm: SimulatedTpm, tmp_path: Path) -> Iterator[Bench]:
    with LyingCa(tmp_path) as ca:
        yield Bench(tpm, ca, tmp_path / "state", ca.make_token(DEVICE))


def finish(bench: Bench) -> None:
    """Runs it again, to the end, and looks at everything."""
    bench.tpm.flush()  # without a resource manager nobody else frees what a killed program had loaded
    bench.run()
    bench.assert_enrolled()
    assert len(bench.ca.issued) == 1


@pytest.mark.parametrize("form", ["persistent", "tss2"])
def test_the_commands_to_the_tpm_are_few(bench: Bench, form: str) -> None:
    """Keys and request: 4 commands with a storage root key (3 for a key file), 7 without; and what is recorded."""
    with TpmTap(bench.tpm.tcti) as tap:
        assert (
            subprocess.run(["tpm-mtls", *bench.command("--tcti", tap.tcti, "--key", form)], check=False).returncode == 0
        )
        first = tap.commands.copy()
        tap.commands.clear()
        assert subprocess.run(["tpm-mtls", *bench.command("--tcti", tap.tcti)], check=False).returncode == 0
        second = tap.commands.copy()

    assert first == [*OBSERVE, *STORAGE_ROOT_KEY, *KEY[form], *RECORD, *COPY]
    assert second == ["ReadPublic"]


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 12))
def test_killed_at_any_tpm_command_it_finishes(bench: Bench, at: int, *, answered: bool) -> None:
    with TpmTap(bench.tpm.tcti) as tap:
        process = bench.start("--tcti", tap.tcti)
        tap.kill(process, at=at, answered=answered)
        process.communicate(timeout=30)

    assert process.returncode == -signal.SIGKILL
    assert not (bench.folder / "identity.json").exists()
    finish(bench)


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(6, 11))
def test_killed_at_any_tpm_command_with_a_key_file_it_finishes(bench: Bench, at: int, *, answered: bool) -> None:
    with TpmTap(bench.tpm.tcti) as tap:
        process = bench.start("--tcti", tap.tcti, "--key", "tss2")
        tap.kill(process, at=at, answered=answered)
        process.communicate(timeout=30)

    assert process.returncode == -signal.SIGKILL
    finish(bench)


@pytest.mark.parametrize(("form", "at"), [*(("persistent", at) for at in range(6)), *(("tss2", at) for at in range(7))])
def test_killed_before_any_change_of_a_file_it_finishes(bench: Bench, form: str, at: int) -> None:
    """Folder, journal, key file (if it is one), trust anchor, certificate, identity, journal's removal."""
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(bench.folder), str(at), *bench.command("--key", form)]
    killed = subprocess.run(command, check=False, capture_output=True, timeout=30)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finish(bench)


def test_the_changes_of_files_are_counted_whole(bench: Bench) -> None:
    """One more than the last of the test above is never reached."""
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(bench.folder), "6", *bench.command()]

    assert subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["persistent", "tss2"])
def test_killed_at_random_moments_until_it_is_done(bench: Bench, form: str) -> None:
    """The same device again and again: a dozen power cuts, none of them repaired by hand."""
    moments = random.Random(17)  # noqa: S311 - the same moments each time
    kills = 0
    for _ in range(13):
        process = bench.start("--key", form)
        try:
            process.wait(moments.uniform(0.1, 0.35))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate(timeout=30)
        bench.tpm.flush()

    assert kills > 0
    finish(bench)
