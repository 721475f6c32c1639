"""The options that commands share, as an ordinary user of a machine meets them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.cli_options import progress

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """An identity folder that is another user's."""
    folder = tmp_path / "closed"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    folder.chmod(0o700 if os.geteuid() == 0 else 0)
    return folder


def as_ordinary_user(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``tpm-mtls`` without root's right to pass by the modes of files (capabilities(7))."""
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [*powerless, sys.executable, "-m", "tpm_mtls", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_an_identity_folder_of_another_user_stops_only_commands_that_need_it(closed: Path, tmp_path: Path) -> None:
    folder = ("--state-dir", str(closed))
    done = as_ordinary_user("openssl-env", *folder, "--config", str(tmp_path / "openssl.cnf"), "--tcti", "swtpm:port=1")
    assert (done.returncode, done.stderr) == (0, "")
    done = as_ordinary_user("client", "get", "https://localhost:1/", *folder)
    assert done.returncode == 8
    assert f"error: cannot read {closed}/identity.json: permission denied\n" in done.stderr
    assert "hint: run it as a user who may" in done.stderr


def test_progress_is_for_a_person_at_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress("waiting")
    assert capsys.readouterr() == ("", "")

    controller, terminal = pty.openpty()
    with open(controller, "rb", buffering=0) as screen, open(terminal, "w") as stderr:  # noqa: PTH123 - descriptors
        monkeypatch.setattr(sys, "stderr", stderr)
        progress("waiting")
        assert screen.read(100) == b"waiting\r\n"
    assert capsys.readouterr().out == ""
