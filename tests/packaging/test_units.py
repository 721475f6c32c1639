"""The files in packaging/ say what systemd understands, and the agent they start gets what it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.units import (
    COMMAND,
    DROP_INS,
    FOLDER,
    PACKAGING,
    SERVICES,
    UNITS,
    analyze,
    command,
    install_drop_in,
    installed,
    is_tight,
    looks_offline,
    needs_systemd,
    setting,
)
from tpm_mtls.identity import DEFAULT_FOLDER
from tpm_mtls.pcr.logs import KERNEL_LOG
from tpm_mtls.secrets.protocol import DEFAULT_SOCKET
from tpm_mtls_agent.cli import run
from tpm_mtls_agent.requests.access import parse_allow_list
from tpm_mtls_agent.requests.listening import BACKLOG, DEFAULT_GROUP
from tpm_mtls_agent.settings import Limits

SERVICE = FOLDER / "tpm-mtls-agent.service"
SOCKET = FOLDER / "tpm-mtls-agent.socket"
AGENT_DROP_INS = [path for path in DROP_INS if path.parent.name == "tpm-mtls-agent.service.d"]


@needs_systemd
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    units = installed(tmp_path)
    done = analyze("verify", "--man=no", *units.values())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.stem)
def test_systemd_would_say_what_is_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    wrong = installed(tmp_path)[unit.name]
    wrong.write_text(wrong.read_text().replace("TimeoutSt", "TimeoutsSt"))
    assert "TimeoutsSt" in analyze("verify", "--man=no", wrong).stderr


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.stem)
def test_each_sandbox_is_tight(unit: Path, tmp_path: Path) -> None:
    if not looks_offline():
        pytest.skip("this systemd looks at running services only")
    place = installed(tmp_path)[unit.name]
    done = is_tight(place)
    assert done.returncode == 0, done.stdout

    loose = "\n".join(line for line in place.read_text().splitlines() if not line.startswith(("Protect", "System")))
    place.write_text(loose)
    assert is_tight(place).returncode != 0


@needs_systemd
@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_systemd_understands_the_drop_ins_and_the_sandbox_stays_tight(drop_in: Path, tmp_path: Path) -> None:
    units = installed(tmp_path)
    install_drop_in(tmp_path, drop_in)
    done = analyze("verify", "--man=no", *units.values())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    if looks_offline():
        assert is_tight(units[drop_in.parent.stem]).returncode == 0


def test_each_drop_in_is_for_a_unit_that_there_is() -> None:
    assert {path.parent.stem for path in DROP_INS} <= {unit.name for unit in UNITS}


@pytest.mark.parametrize("unit", [SERVICE, *AGENT_DROP_INS], ids=lambda path: path.stem)
def test_the_command_of_a_unit_is_one_that_the_agent_takes(unit: Path) -> None:
    words = command(unit)
    assert words[:3] == [COMMAND, "agent", "run"]
    with run.make_context("run", words[3:]) as context:
        assert context.params["state_dir"] == DEFAULT_FOLDER


def test_the_agent_reaches_the_backend_and_shows_its_health_where_programs_look() -> None:
    text = SERVICE.read_text()
    assert "PrivateNetwork=yes" not in text
    assert {"AF_INET", "AF_INET6"} <= set(setting(SERVICE, "RestrictAddressFamilies").split())
    (run_dir,) = (parameter.default for parameter in run.params if parameter.name == "run_dir")
    assert str(run_dir) == f"/run/{setting(SERVICE, 'RuntimeDirectory')}"
    copied_to = setting(SERVICE, "ExecStartPre").split()[-1]
    for unit in (SERVICE, *AGENT_DROP_INS):
        words = command(unit)
        assert "--event-log" not in words or words[words.index("--event-log") + 1] == copied_to
    assert f"--event-log {copied_to}" in setting(SERVICE, "ExecStart")
    assert str(KERNEL_LOG) in setting(SERVICE, "ExecStartPre")
    assert Path(copied_to).parent == run_dir.parent  # root writes it, so not where the agent may put links


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
    making = ["systemd-sysusers", f"--root={tmp_path}", PACKAGING / "sysusers.d" / "tpm-mtls.conf"]
    subprocess.run(making, capture_output=True, check=True, timeout=60)
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    assert groups == {"tss": setting(SERVICE, "User"), "tpm-mtls": "", "tpm-mtls-server": "", "tpm-mtls-pki": ""}


def test_the_example_of_an_allow_list_is_one() -> None:
    path = PACKAGING / "agent.allow.toml"
    rules = parse_allow_list(path.read_bytes(), str(path)).rules
    assert [rule.uid for rule in rules] == [None, None, 0]


@pytest.mark.parametrize(
    ("answers", "status", "calls"),
    [
        ("0 0", 0, ["--quiet is-active", "reload"]),
        ("3 0", 0, ["--quiet is-active"]),
        ("0 1", 1, ["--quiet is-active", "reload"]),
    ],
    ids=["running", "not running", "not to be reloaded"],
)
def test_the_audit_log_is_rotated_whether_the_agent_runs_or_not(
    answers: str, status: int, calls: list[str], tmp_path: Path
) -> None:
    (script,) = re.findall(
        r"^ *postrotate\n(.*?)^ *endscript$",
        (PACKAGING / "logrotate.d" / "tpm-mtls").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    active, reloaded = answers.split()
    systemctl = (
        f'systemctl() {{ echo "$*" >> calls; case $1 in reload) return {reloaded};; *) return {active};; esac; }}\n'
    )
    done = subprocess.run(["sh", "-c", systemctl + script], cwd=tmp_path, check=False, timeout=10)
    assert done.returncode == status
    said = (tmp_path / "calls").read_text().splitlines()
    assert said == [f"{call} {SERVICE.name}" for call in calls]
