"""The files in packaging/ say what systemd understands, and the agent they start gets what it needs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tpm_mtls.identity import DEFAULT_FOLDER
from tpm_mtls.pcr.logs import KERNEL_LOG
from tpm_mtls.secrets.protocol import DEFAULT_SOCKET
from tpm_mtls_agent.cli import run
from tpm_mtls_agent.requests.access import parse_allow_list
from tpm_mtls_agent.requests.listening import BACKLOG, DEFAULT_GROUP
from tpm_mtls_agent.settings import Limits

PACKAGING = Path(__file__).parents[2] / "packaging"
SERVICE = PACKAGING / "systemd" / "tpm-mtls-agent.service"
SOCKET = PACKAGING / "systemd" / "tpm-mtls-agent.socket"
DROP_INS = sorted((PACKAGING / "systemd" / "drop-ins").glob("*.conf"))
EXPOSURE = 3.0  # of 10, by systemd-analyze security

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs the package systemd")


def setting(unit: Path, name: str) -> str:
    """The last value of a unit's setting."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), flags=re.MULTILINE)[-1]


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units, with the command where it is on this machine."""
    command = Path(sys.executable).with_name("tpm-mtls")
    copies = []
    for unit in (SERVICE, SOCKET):
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/usr/bin/tpm-mtls", str(command)))
        copies.append(copy)
    return copies


@needs_systemd
def test_systemd_understands_the_units(installed: list[Path]) -> None:
    done = analyze("verify", "--man=no", *installed)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

    installed[0].write_text(installed[0].read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in analyze("verify", "--man=no", *installed).stderr


@needs_systemd
def test_the_agents_sandbox_is_tight(installed: list[Path]) -> None:
    if "--offline" not in analyze("--help").stdout:
        pytest.skip("this systemd looks at running services only")
    threshold = round(EXPOSURE * 10)
    done = analyze("security", "--offline=true", f"--threshold={threshold}", installed[0])
    assert done.returncode == 0, done.stdout


@needs_systemd
@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.stem)
def test_systemd_understands_the_drop_ins_and_the_sandbox_stays_tight(installed: list[Path], drop_in: Path) -> None:
    folder = installed[0].with_name(f"{SERVICE.name}.d")
    folder.mkdir()
    command = str(Path(sys.executable).with_name("tpm-mtls"))
    (folder / drop_in.name).write_text(drop_in.read_text().replace("/usr/bin/tpm-mtls", command))
    done = analyze("verify", "--man=no", *installed)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    if "--offline" in analyze("--help").stdout:
        assert (
            analyze("security", "--offline=true", f"--threshold={round(EXPOSURE * 10)}", installed[0]).returncode == 0
        )


@pytest.mark.parametrize("unit", [SERVICE, *DROP_INS], ids=lambda path: path.stem)
def test_the_command_of_a_unit_is_one_that_the_agent_takes(unit: Path) -> None:
    words = shlex.split(setting(unit, "ExecStart"))
    assert words[:3] == ["/usr/bin/tpm-mtls", "agent", "run"]
    with run.make_context("run", words[3:]) as context:
        assert context.params["state_dir"] == DEFAULT_FOLDER


def test_the_agent_reaches_the_backend_and_shows_its_health_where_programs_look() -> None:
    text = SERVICE.read_text()
    assert "PrivateNetwork=yes" not in text
    assert {"AF_INET", "AF_INET6"} <= set(setting(SERVICE, "RestrictAddressFamilies").split())
    (run_dir,) = (parameter.default for parameter in run.params if parameter.name == "run_dir")
    assert str(run_dir) == f"/run/{setting(SERVICE, 'RuntimeDirectory')}"
    copied_to = setting(SERVICE, "ExecStartPre").split()[-1]
    assert f"--event-log {copied_to}" in setting(SERVICE, "ExecStart")
    assert str(KERNEL_LOG) in setting(SERVICE, "ExecStartPre")
    assert copied_to.startswith(f"{run_dir}/")


def test_the_socket_is_where_programs_expect_it_and_for_whom() -> None:
    assert setting(SOCKET, "ListenStream") == str(DEFAULT_SOCKET)
    assert setting(SOCKET, "SocketMode") == "0660"
    assert (setting(SOCKET, "SocketUser"), setting(SOCKET, "SocketGroup")) == ("root", DEFAULT_GROUP)
    assert int(setting(SOCKET, "Backlog")) == BACKLOG


def test_the_agent_can_tell_who_asks_and_has_the_time_it_takes() -> None:
    text = SERVICE.read_text()
    for hides in ("PrivateUsers=yes", "ProtectProc=invisible", "ProcSubset=pid"):
        assert hides not in text
    limits = Limits()
    assert int(setting(SERVICE, "TimeoutStopSec")) > limits.ending
    assert int(setting(SERVICE, "LimitNOFILE")) > limits.connections


def test_the_user_and_the_folder_are_the_units() -> None:
    users = (PACKAGING / "sysusers.d" / "tpm-mtls.conf").read_text()
    folders = (PACKAGING / "tmpfiles.d" / "tpm-mtls.conf").read_text()
    user, state = setting(SERVICE, "User"), f"/var/lib/{setting(SERVICE, 'StateDirectory')}"
    assert f"\nu {user} " in users
    assert f"\nm {user} {DEFAULT_GROUP}" in users
    assert f"\nd {state} {setting(SERVICE, 'StateDirectoryMode')} {user} " in folders
    assert f"--state-dir {state} " in setting(SERVICE, "ExecStart")
    assert f"\n{state}/agent.audit.jsonl {{" in (PACKAGING / "logrotate.d" / "tpm-mtls").read_text()


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs the package systemd")
def test_systemd_makes_the_user(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", PACKAGING / "sysusers.d" / "tpm-mtls.conf"]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    assert groups == {"tss": setting(SERVICE, "User"), setting(SERVICE, "User"): ""}


def test_the_example_of_an_allow_list_is_one() -> None:
    path = PACKAGING / "agent.allow.toml"
    rules = parse_allow_list(path.read_bytes(), str(path)).rules
    assert [rule.uid for rule in rules] == [None, None, 0]
