"""``tpm-mtls agent`` as users and systemd run it, with a TPM."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.agent_process import agent_process
from tpm_mtls import cli
from tpm_mtls.errors import NoSuchSecretError, TpmRefusedError
from tpm_mtls.files import storage_error
from tpm_mtls.identity import DEFAULT_FOLDER
from tpm_mtls_agent.duty_options import RUN_FOLDER

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm


def run(*arguments: object) -> int:
    """The command line in this process."""
    return cli.run([str(each) for each in arguments])


def test_secrets_come_and_go_and_the_end_is_orderly(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path) as agent:
        index = agent.client.set("third-party-api-key", "sk_live_abc123xyz")
        assert agent.client.get("third-party-api-key") == "sk_live_abc123xyz"
        assert agent.client.set("third-party-api-key", "sk_live_new_key_456") == index
        assert agent.client.get("third-party-api-key") == "sk_live_new_key_456"
        assert f"{index:#x}" in "".join(tpm.handles("nv-index")).lower()
        agent.client.delete("third-party-api-key")
        with pytest.raises(NoSuchSecretError):
            agent.client.get("third-party-api-key")
        assert "Traceback" not in agent.end()
        assert agent.process.returncode == 0
        assert not agent.socket.exists()
    assert tpm.handles("nv-index") == []


def test_no_name_and_no_value_is_on_the_disk(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path) as agent:
        agent.client.set("the-name-of-it", "the-value-of-it")
        agent.client.set("the-name-of-a-large-one", "the-value-of-a-large-one" * 1000)
        said = agent.end()
    files = [path for path in agent.state.rglob("*") if path.is_file()]

    assert len(files) >= 4
    for text in (said.encode(), *(path.read_bytes() for path in files)):
        assert b"the-name" not in text
        assert b"the-value" not in text
    lines = [json.loads(line) for line in (agent.state / "agent.audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["result"]) for line in lines] == [("set", "ok"), ("set", "ok")]
    assert lines[0]["secret"] != lines[1]["secret"]


def test_a_killed_agents_socket_is_replaced_and_its_secrets_are_there(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path) as agent:
        agent.client.set("key", "value")
        agent.end(signal.SIGKILL)
        assert agent.socket.exists()
    with agent_process(tpm, tmp_path) as agent:
        assert agent.client.get("key") == "value"
        agent.end()


def test_a_second_agent_is_refused_by_name(
    tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with agent_process(tpm, tmp_path) as agent:
        command = [sys.executable, "-m", "tpm_mtls", "agent", "run", "--tcti", tpm.tcti]
        for socket_path, state, said in (
            (tmp_path / "other.sock", agent.state, f"another agent runs in {agent.state}"),
            (agent.socket, tmp_path / "other", f"another agent serves {agent.socket}"),
        ):
            done = subprocess.run(
                [*command, "--socket", socket_path, "--state-dir", state],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == 10
            assert done.stderr.splitlines()[0] == f"tpm-mtls: error: {said}"
            assert done.stderr.splitlines()[1].startswith("tpm-mtls: hint: end that process first")
        agent.client.set("key", "value")
        agent.end()
    assert capsys.readouterr().err == ""


def test_it_gives_up_what_a_keeper_of_secrets_needs_not(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path) as agent:
        process = Path(f"/proc/{agent.process.pid}")
        limits = {line[:25].strip(): line[25:].split()[:2] for line in (process / "limits").read_text().splitlines()}
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        assert limits["Max core file size"] in (["1", "1"], ["0", "0"])
        assert int(limits["Max open files"][0]) >= min(4096, int(limits["Max open files"][1]))
        assert status["Umask"].strip() == "0077"
        agent.end()


def test_a_socket_from_systemd_lives_on_while_the_agent_restarts(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(tmp_path / "systemd.sock"))
        passed.listen()
        with agent_process(tpm, tmp_path, passed=passed) as agent:
            assert agent.socket == tmp_path / "systemd.sock"
            agent.client.set("key", "value")
            agent.end()
            assert agent.process.returncode == 0
        assert agent.socket.exists()
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(agent.socket))
            early.sendall(b'{"action":"get","name":"key"}')
            with agent_process(tpm, tmp_path, passed=passed) as agent:
                early.settimeout(30)
                assert early.recv(1000) == b'{"ok":true,"value":"value"}'
                agent.end()


def test_a_secret_bound_to_the_boot_is_not_given_out_after_another(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path, "--pcrs", "sha256:23") as agent:
        agent.client.set("key", "value")
        assert agent.client.get("key") == "value"
        tpm.tool("tpm2_pcrextend", f"23:sha256={'11' * 32}")
        answer = agent.raw(b'{"action":"get","name":"key"}')
        assert answer["rc"] == "0x99d"
        with pytest.raises(TpmRefusedError, match="policy"):
            agent.client.get("key")
        tpm.tool("tpm2_pcrreset", "23")
        assert agent.client.get("key") == "value"
        agent.end()


def test_a_tpm_that_goes_away_is_said_so_and_may_come_back(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path) as agent:
        agent.client.set("key", "value")
        tpm.stop()
        answer = agent.raw(b'{"action":"get","name":"key"}')
        assert str(answer["error"]).startswith(f"no TPM answers at {tpm.tcti}")
        assert tpm.simulator.start().tcti == tpm.tcti
        assert agent.client.get("key") == "value"
        agent.end()


def test_a_tpm_that_was_cleared_is_said_so_and_the_files_stay(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with agent_process(tpm, tmp_path) as agent:
        agent.client.set("key", "value" * 1000)
        agent.end()
    before = sorted((agent.state / "secrets").iterdir())
    tpm.tool("tpm2_clear", "-c", "p")
    with agent_process(tpm, tmp_path) as agent:
        answers = [agent.raw(b'{"action":"get","name":"key"}'), agent.raw(b'{"action":"set","name":"a","value":"b"}')]
        for answer in answers:
            assert "storage root key is not" in str(answer["error"])
            assert "then what it sealed is lost" in str(answer["error"])
        assert "storage root key is not" in agent.end()
    assert sorted((agent.state / "secrets").iterdir()) == before


def test_status_says_who_listens_and_how_full_it_is(
    tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with agent_process(tpm, tmp_path) as agent:
        options = ("--socket", agent.socket, "--state-dir", agent.state, "--run-dir", tmp_path / "run")
        index = agent.client.set("key", "value")
        agent.client.set("key", "value")
        assert run("agent", "status", *options) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"process {agent.process.pid} listens at {agent.socket}",
            "secrets: 1, 1 in NV memory, 0 in files",
            "free slots: 255; most writes to one NV index: 2, worn: 0",
        ]
        assert run("agent", "status", *options, "--json") == 0
        assert json.loads(capsys.readouterr().out) == {
            "socket": str(agent.socket),
            "listening": True,
            "pid": agent.process.pid,
            "uid": os.geteuid(),
            "secrets": 1,
            "in_nv": 1,
            "in_files": 0,
            "free_slots": 255,
            "nv_writes": {f"{index:#010x}": 2},
            "worn": [],
        }
        agent.end()


def test_status_asks_the_agent_that_the_environment_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPM_MTLS_SOCKET", str(tmp_path / "named.sock"))
    folders = ["--state-dir", tmp_path, "--run-dir", tmp_path]
    assert run("agent", "status", *folders) == 6
    assert f"no agent listens at {tmp_path / 'named.sock'}" in capsys.readouterr().err
    assert run("agent", "status", *folders, "--socket", tmp_path / "given.sock") == 6
    assert f"no agent listens at {tmp_path / 'given.sock'}" in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "option"), [(RUN_FOLDER, "--run-dir"), (DEFAULT_FOLDER, "--state-dir")])
def test_who_may_not_use_the_default_folders_is_told_the_option(folder: Path, option: str) -> None:
    error = storage_error(PermissionError(errno.EACCES, "Permission denied"), folder, "make")
    assert str(error) == f"cannot make {folder}: permission denied"
    assert error.hint.endswith(f"; or name a folder of your own: {option}")


def test_status_fails_where_no_agent_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tpmd.sock"
    options = ("--socket", path, "--state-dir", tmp_path, "--run-dir", tmp_path / "run")
    assert run("agent", "status", *options) == 6
    assert capsys.readouterr().err.startswith(f"tpm-mtls: error: no agent listens at {path}\ntpm-mtls: hint: start it")
    assert run("agent", "status", *options, "--json") == 6
    assert json.loads(capsys.readouterr().out) == {"socket": str(path), "listening": False}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--allow", "/nowhere/allow.toml"], 8, "cannot read /nowhere/allow.toml: no such file"),
        (["--audit", "/nowhere/audit.jsonl"], 8, "cannot write /nowhere/audit.jsonl: no such file"),
        (["--group", "no-such-group"], 2, "cannot be given to the group 'no-such-group'"),
        (["--pcrs", "sha256:99"], 2, "PCR"),
        (["--tcti", "nonsense"], 3, "not a TCTI string"),
        (["--owner-auth", "file:/nowhere/auth"], 8, "cannot read /nowhere/auth"),
    ],
)
def test_wrong_options_end_the_start(
    tpm: SimulatedTpm, tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    base = ["--socket", tmp_path / "tpmd.sock", "--state-dir", tmp_path / "state", "--tcti", tpm.tcti]
    done = subprocess.run(
        [sys.executable, "-m", "tpm_mtls", "agent", "run", *base, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_sighup_is_a_reload(tpm: SimulatedTpm, tmp_path: Path) -> None:
    allow = tmp_path / "allow.toml"
    rule = f'[[allow]]\nuid = {os.geteuid()}\nactions = ["set", "get"]\nnames = ["%s"]\n'
    allow.write_text(rule % "one")
    allow.chmod(0o600)
    with agent_process(tpm, tmp_path, "--allow", allow) as agent:
        assert agent.raw(b'{"action":"set","name":"one","value":"v"}')["ok"]
        assert "may not set" in str(agent.raw(b'{"action":"set","name":"two","value":"v"}')["error"])
        allow.write_text(rule % "two")
        agent.process.send_signal(signal.SIGHUP)
        assert agent.process.stderr is not None
        assert agent.process.stderr.readline() == "tpm-mtls: INFO: reloaded\n"
        assert agent.raw(b'{"action":"set","name":"two","value":"v"}')["ok"]
        assert "may not get" in str(agent.raw(b'{"action":"get","name":"one"}')["error"])
        agent.end()


def test_help_has_an_example_and_needs_no_tpm_library() -> None:
    code = (
        "import sys; from tpm_mtls.cli import run; run(['agent', 'run', '--help']); "
        "print('tpm2_pytss' in sys.modules, 'cryptography' in sys.modules, 'asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "Example: tpm-mtls agent run" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False False"
