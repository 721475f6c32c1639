"""The Ansible role, run against this machine and a simulated TPM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.hardening import ALL

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

FOLDER = Path(__file__).parents[2] / "packaging" / "ansible"
PROGRAM = Path(sys.executable).with_name("tpm-mtls")


class Playbook:
    """``ansible-playbook harden.yml`` for this machine, with its files in ``folder``."""

    def __init__(self, tpm: SimulatedTpm, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, Any] = {
            "ansible_python_interpreter": sys.executable,
            "tpm_mtls_program": str(PROGRAM),
            "tpm_mtls_hardening": ALL.replace("state/", f"{folder}/state/"),
            "tpm_mtls_hardening_file": str(folder / "etc" / "hardening.toml"),
            "tpm_mtls_state_dir": str(folder / "state"),
            "tpm_mtls_tcti": tpm.tcti,
            "tpm_mtls_user": "root" if os.geteuid() == 0 else "",  # who has no need to be asked for a password
            "tpm_mtls_become": False,
            "tpm_mtls_at_boot": False,
        }

    def __call__(self, *options: str, status: int = 0) -> tuple[str, dict[str, int]]:
        """What it says, and what it counts."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE_", "ANSIBLE_"))}
        own = {
            "HOME": str(self.folder),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", "--inventory", "localhost,", "--connection", "local"),
                *("--extra-vars", json.dumps(self.variables), *options, "harden.yml"),
            ],
            cwd=FOLDER,
            env=inherited | own,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, done.stdout + done.stderr
        recap = done.stdout.rpartition("PLAY RECAP")[2]
        return done.stdout, {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap)}


@pytest.fixture
def playbook(tpm: SimulatedTpm, tmp_path: Path) -> Playbook:
    return Playbook(tpm, tmp_path)


def test_it_checks_hardens_and_changes_nothing_the_second_time(tpm: SimulatedTpm, playbook: Playbook) -> None:
    said, counts = playbook("--check", "--diff")
    assert "owner authorization: set it, and keep it in sealed:" in said
    assert counts["changed"] >= 1
    assert tpm.handles("persistent") == []
    assert not (playbook.folder / "etc").exists()

    _, counts = playbook()
    assert counts["changed"] == 3  # the folder, the file, the TPM
    assert tpm.handles("persistent") == ["0x81000001", "0x81010002"]
    lockout = (playbook.folder / "state" / "lockout").read_text().strip()

    said, counts = playbook("-vvv")
    assert (counts["changed"], counts["failed"]) == (0, 0)
    assert lockout not in said


def test_it_fails_where_somebody_else_hardened(tpm: SimulatedTpm, playbook: Playbook) -> None:
    tpm.tool("tpm2_changeauth", "-c", "owner", "else")
    said, counts = playbook(status=2)
    assert "the owner hierarchy has an authorization value" in said
    assert (counts["changed"], counts["failed"]) == (0, 1)
    assert tpm.handles("persistent") == []
