"""The Debian package's scripts, where systemd runs and a service does not do as it is told."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.units import PACKAGING

if TYPE_CHECKING:
    from pathlib import Path

SYSTEMD_RUNS = "/run/systemd/system"
PROGRAMS = ("systemctl", "systemd-sysusers", "systemd-tmpfiles", "py3compile", "py3clean")


def done(script: str, argument: str, folder: Path, fails: str = "") -> subprocess.CompletedProcess[str]:
    """The script, run with programs that only write down how they were called; those named in ``fails`` fail."""
    programs = folder / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        said = f'"{name} $*"'
        (programs / name).write_text(
            f"#!/bin/sh\necho {said} >>{folder}/calls\ncase {said} in {fails or 'x'}*) exit 1 ;; esac\n"
        )
        (programs / name).chmod(0o755)
    text = (PACKAGING / "debian" / script).read_text()
    assert SYSTEMD_RUNS in text
    (folder / script).write_text(text.replace(SYSTEMD_RUNS, str(programs)))
    return subprocess.run(
        ["/bin/sh", folder / script, argument],
        env={"PATH": f"{programs}:{os.defpath}", "DPKG_ROOT": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )


@pytest.mark.parametrize(
    ("script", "argument", "fails", "complaint"),
    [
        ("postinst", "configure", r"systemctl\ try-restart", "did not start again"),
        ("prerm", "remove", r"systemctl\ disable", "not every service could be stopped"),
    ],
)
def test_a_service_that_fails_leaves_no_package_half_installed(
    script: str, argument: str, fails: str, complaint: str, tmp_path: Path
) -> None:
    found = done(script, argument, tmp_path, fails)
    assert found.returncode == 0
    assert complaint in found.stderr
    calls = (tmp_path / "calls").read_text()
    assert fails.replace("\\", "") in calls
    assert calls.splitlines()[-1].startswith("systemctl try-restart" if script == "postinst" else "py3clean")


@pytest.mark.parametrize("program", ["systemd-sysusers", "systemd-tmpfiles"])
def test_users_and_folders_that_cannot_be_made_are_an_error(program: str, tmp_path: Path) -> None:
    assert done("postinst", "configure", tmp_path, program).returncode != 0


def test_an_upgrade_stops_nothing(tmp_path: Path) -> None:
    assert done("prerm", "upgrade", tmp_path).returncode == 0
    assert "systemctl" not in (tmp_path / "calls").read_text()
