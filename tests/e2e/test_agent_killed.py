"""The agent is killed at random moments under load: what it said is done is done, and nothing is left over.

TPM_MTLS_POWER_CUTS=500 makes more of it; TPM_MTLS_SEED repeats a run's moments.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from support.agent_process import agent_process
from support.secret_programs import Programs
from tpm_mtls_agent.storage.opening import read_statistics

if TYPE_CHECKING:
    from pathlib import Path

    from support.agent_process import AgentProcess
    from support.tpm import SimulatedTpm

_log = logging.getLogger(__name__)

KILLS = int(os.environ.get("TPM_MTLS_POWER_CUTS", "12"))
SEED = int(os.environ.get("TPM_MTLS_SEED", "1"))
PROGRAMS = 6
LONGEST = 0.6  # of the time that a start takes: on a loaded machine the programs get to less, too
STARTING = 0.2  # of the kills are while it starts

pytestmark = pytest.mark.timeout(max(120, 5 * KILLS))


def assert_nothing_is_left_over(tpm: SimulatedTpm, agent: AgentProcess, secrets: int) -> None:
    statistics = read_statistics(agent.state)
    assert statistics.secrets == secrets
    assert statistics.orphans == ()
    assert len(tpm.handles("nv-index")) == statistics.in_nv
    assert tpm.handles("transient") == []
    assert tpm.handles("loaded-session") == []
    files = [path.name for path in (agent.state / "secrets").iterdir()]
    assert [name for name in files if name.startswith(".")] == []
    assert len(files) <= 3 + secrets


def kill_while_it_starts(tpm: SimulatedTpm, folder: Path, seconds: float) -> None:
    command = ["agent", "run", "--socket", folder / "tpmd.sock", "--state-dir", folder / "state", "--tcti", tpm.tcti]
    with subprocess.Popen(
        [sys.executable, "-m", "tpm_mtls", *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        time.sleep(seconds)
        process.kill()


def test_killed_at_random_moments_under_load(tpm: SimulatedTpm, tmp_path: Path) -> None:
    """Some starts bind values to a PCR: they are kept in other NV indices, or files, and have to move."""
    chance = random.Random(SEED)  # noqa: S311 - moments to be repeated, no secret
    programs = Programs(PROGRAMS, SEED)
    takes = 0.5
    for _ in range(KILLS):
        if chance.random() < STARTING:
            kill_while_it_starts(tpm, tmp_path, chance.uniform(0.5, 1) * takes)
        options = ["--pcrs", "sha256:16"] if chance.random() < 0.3 else []
        begun = time.monotonic()
        with agent_process(tpm, tmp_path, *options) as agent:
            takes = time.monotonic() - begun
            programs.check(agent.client)
            assert_nothing_is_left_over(tpm, agent, len(programs.living))
            asking = programs.start(agent.client)
            time.sleep(chance.uniform(0, LONGEST) * takes)
            agent.end(signal.SIGKILL)
            programs.end(asking)
    with agent_process(tpm, tmp_path) as agent:
        programs.check(agent.client)
        assert_nothing_is_left_over(tpm, agent, len(programs.living))
        for secret in programs.living:
            secret.delete(agent.client)
        assert_nothing_is_left_over(tpm, agent, 0)
        assert "Traceback" not in agent.end()
    assert programs.acknowledged >= KILLS / 2
    _log.info("%d kills, %d acknowledged changes, seed %d", KILLS, programs.acknowledged, SEED)
