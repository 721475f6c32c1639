"""Killed at any command, run again: the next run is not hindered by what the first one left."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.tpm_proxy import TpmProxy
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen.keys import PersistentForm, create_key

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

CREATE_PRIMARY, EVICT_CONTROL, CREATE_LOADED, FLUSH_CONTEXT = 0x131, 0x120, 0x191, 0x165


def create(tcti: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tpm_mtls", "keygen", "create", "--tcti", tcti, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("command", "skip", "left"),
    [
        pytest.param(CREATE_PRIMARY, 0, [], id="SRK made, not yet persistent"),
        pytest.param(EVICT_CONTROL, 0, ["0x81000001"], id="SRK persistent, not yet flushed"),
        pytest.param(CREATE_LOADED, 1, ["0x81000001"], id="key made, not yet persistent"),
        pytest.param(EVICT_CONTROL, 1, ["0x81000001", "0x81000100"], id="key persistent, nobody told"),
        pytest.param(FLUSH_CONTEXT, 1, ["0x81000001", "0x81000100"], id="all done, nobody told"),
    ],
)
def test_killed_after_any_command_the_next_run_makes_a_key(
    tpm: SimulatedTpm, tmp_path: Path, command: int, skip: int, left: list[str]
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(command, signal.SIGKILL, skip=skip)
    assert create(proxy.tcti, "--handle", "next").returncode == -signal.SIGKILL
    assert tpm.handles("persistent") == left

    again = create(tpm.tcti, "--handle", "next")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("handle:0x8100010")
    tpm.flush()  # what the killed process left: a resource manager does that by itself


def test_killed_before_the_file_is_written_there_is_none(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(CREATE_LOADED, signal.SIGKILL, skip=1)
    out = tmp_path / "out"
    out.mkdir()
    assert create(proxy.tcti, "--out", str(out / "key.pem")).returncode == -signal.SIGKILL
    assert list(out.iterdir()) == []
    assert create(tpm.tcti, "--out", str(out / "key.pem")).returncode == 0
    tpm.flush()


@pytest.mark.parametrize("command", [CREATE_PRIMARY, CREATE_LOADED, EVICT_CONTROL])
def test_interrupted_it_ends_with_130_and_leaves_nothing_loaded(
    tpm: SimulatedTpm, tmp_path: Path, command: int
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(command, signal.SIGINT)
    done = create(proxy.tcti, "--handle", "next")
    assert (done.returncode, done.stderr.strip()) == (130, "tpm-mtls: interrupted")
    assert tpm.handles("transient") == []


def test_a_key_that_nobody_was_told_of_is_found_and_left_alone(tpm: SimulatedTpm, tmp_path: Path) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.signal_after(EVICT_CONTROL, signal.SIGKILL, skip=1)
    create(proxy.tcti, "--handle", "next")
    tpm.flush()
    with open_tpm(tpm.tcti) as opened:
        orphan = opened.read_public(0x81000100).public
        key = create_key(opened, KeyAlgorithm.ECC_P256, PersistentForm())
        assert str(key.reference) == "handle:0x81000101"
        assert opened.read_public(0x81000100).public == orphan
