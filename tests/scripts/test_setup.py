"""The set-up says what it needs, changes nothing the second time, and never touches the system's own provider."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# what the script itself is made of; everything else must be found, installed or asked for
BASICS = [
    "bash",
    "sh",
    "env",
    "dirname",
    "cat",
    "id",
    "mktemp",
    "sort",
    "head",
    "tail",
    "tr",
    "sed",
    "grep",
    "mkdir",
    "rm",
    "sha256sum",
]


def set_up(folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "scripts" / "setup.sh"],
        env={"PATH": path, "HOME": str(folder), "PYTHON": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH with the basics only: no apt-get, no sudo, no swtpm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in BASICS:
        program = shutil.which(name)
        if program:
            (folder / name).symlink_to(program)
    return folder


def test_a_second_run_changes_nothing_and_says_nothing() -> None:
    done = subprocess.run([ROOT / "run", "setup"], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_apt_it_says_what_to_install_by_hand(checkout: Path, bare_path: Path) -> None:
    done = set_up(checkout, str(bare_path))
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == "tpm-mtls: error: this machine has no apt-get"
    assert "install by hand: swtpm swtpm-tools tpm2-tools" in hint


def test_without_network_it_says_what_to_install_by_hand(checkout: Path, bare_path: Path) -> None:
    (bare_path / "apt-get").write_text("#!/bin/sh\necho 'no network' >&2\nexit 100\n")
    (bare_path / "apt-get").chmod(0o755)
    (bare_path / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (bare_path / "sudo").chmod(0o755)
    done = set_up(checkout, str(bare_path))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("setup: installing with apt-get: swtpm ")
    assert lines[-2] == "tpm-mtls: error: apt-get update failed; is there a network?"
    assert lines[-1].startswith("tpm-mtls: hint: install by hand: swtpm")


def test_an_ordinary_user_without_sudo_is_told_what_root_must_install(checkout: Path, bare_path: Path) -> None:
    for name, script in (("apt-get", "exit 0"), ("id", "echo 1000")):
        (bare_path / name).unlink(missing_ok=True)
        (bare_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (bare_path / name).chmod(0o755)
    done = set_up(checkout, str(bare_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2] == "tpm-mtls: error: packages are missing and there is no sudo"


def test_the_command_without_arguments_says_how_to_use_it() -> None:
    done = subprocess.run([ROOT / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: ./run COMMAND" in done.stderr
