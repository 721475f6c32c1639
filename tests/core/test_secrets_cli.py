"""``tpm-mtls secret``: values come from standard input or a file; programs get them as descriptors, or variables."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from support.scripted_agent import MemoryAgent
from support.terminal import shown_on_a_terminal
from tpm_mtls.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "stripe-api-key-prod"
VALUE = "sk_live_abc123xyz"

Command: TypeAlias = "Callable[..., tuple[bytes, str]]"


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryAgent]:
    with MemoryAgent(tmp_path / "agent.sock") as running:
        monkeypatch.setenv("TPM_MTLS_SOCKET", str(running.path))
        monkeypatch.chdir(tmp_path)
        yield running


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Runs ``tpm-mtls secret …``, which must end with ``status``: standard output and error."""

    def command(*arguments: str, given: bytes = b"", terminal: bool = False, status: int = 0) -> tuple[bytes, str]:
        monkeypatch.setattr("sys.stdin", (Terminal if terminal else io.TextIOWrapper)(io.BytesIO(given)))
        assert run(["secret", *arguments]) == status
        output, errors = capfdbinary.readouterr()
        assert b"Traceback" not in errors
        if status:
            assert output == b""
            assert errors.startswith(b"tpm-mtls: error: ")
            assert b"\ntpm-mtls: hint: " in errors
        return output, errors.decode()

    return command


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401 - subprocess.run's own
    """Runs ``tpm-mtls secret …`` as a program."""
    return subprocess.run(
        [sys.executable, "-m", "tpm_mtls", "secret", *arguments],
        capture_output=True,
        check=False,
        timeout=60,
        **options,
    )


def test_a_secret_is_set_from_standard_input_got_and_deleted(secret: Command, agent: MemoryAgent) -> None:
    assert secret("set", NAME, given=VALUE.encode()) == (b"0x01520000\n", "")
    assert agent.secrets == {NAME: VALUE}
    assert secret("get", NAME) == (VALUE.encode(), "")
    assert secret("del", NAME) == (b"deleted\n", "")
    assert agent.secrets == {}
    for verb in ("get", "del"):
        assert "no secret has that name" in secret(verb, NAME, status=10)[1]


def test_answers_for_scripts(secret: Command) -> None:
    assert json.loads(secret("set", NAME, "--json", given=VALUE.encode())[0]) == {"index": "0x01520000"}
    assert json.loads(secret("get", NAME, "--json")[0]) == {"value": VALUE}
    assert json.loads(secret("get", NAME, "--json", "--out", "value")[0]) == {"out": "value"}
    assert json.loads(secret("del", NAME, "--json")[0]) == {"deleted": True}


@pytest.mark.parametrize("value", ["a\n", "two\nlines", "ключ", "\0"])
def test_a_value_stays_byte_for_byte(secret: Command, agent: MemoryAgent, tmp_path: Path, value: str) -> None:
    (tmp_path / "value").write_bytes(value.encode())
    secret("set", NAME, "--file", "value")
    assert agent.secrets == {NAME: value}
    assert secret("get", NAME)[0] == value.encode()


def test_a_file_is_made_for_its_owner_alone_and_none_is_overwritten(secret: Command, tmp_path: Path) -> None:
    secret("set", NAME, given=VALUE.encode())
    assert secret("get", NAME, "--out", "value")[0] == b"value\n"
    assert (tmp_path / "value").read_text() == VALUE
    assert (tmp_path / "value").stat().st_mode & 0o777 == 0o600
    assert "value exists already" in secret("get", NAME, "--out", "value", status=10)[1]
    secret("get", "another", "--out", "other", status=10)
    assert not (tmp_path / "other").exists()


def test_binary_values_go_with_base64(secret: Command, agent: MemoryAgent) -> None:
    value = b"\0\xff\n"
    assert "no text in UTF-8" in secret("set", NAME, given=value, status=2)[1]
    assert agent.asked == []
    secret("set", NAME, "--base64", given=value)
    assert agent.secrets == {NAME: base64.b64encode(value).decode()}
    assert secret("get", NAME, "--base64")[0] == value
    assert json.loads(secret("get", NAME, "--base64", "--json")[0]) == {"base64": "AP8K"}
    secret("set", NAME, given=VALUE.encode())
    assert "not in base64" in secret("get", NAME, "--base64", status=2)[1]


def test_a_name_need_not_be_an_argument(
    secret: Command, agent: MemoryAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "name").write_text(f"{NAME}\n")
    (tmp_path / "name").chmod(0o600)
    secret("set", "--name-from", "file:name", given=VALUE.encode())
    assert agent.secrets == {NAME: VALUE}
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert secret("get", "--name-from", "credential:name")[0] == VALUE.encode()
    (tmp_path / "name").chmod(0o644)
    assert "can be read by other users" in secret("get", "--name-from", "file:name", status=8)[1]


@pytest.mark.parametrize(
    ("arguments", "given", "why"),
    [
        (["set", NAME], b"", "the secret is empty"),
        (["set", NAME], b"x" * 65537, "more than 65536 bytes"),
        (["set", NAME, "--base64"], b"x" * 49153, "the value has 65540 bytes"),
        (["set"], VALUE.encode(), "which secret?"),
        (["set", NAME, VALUE], b"", "more than one name"),
        (["set", "n" * 256], VALUE.encode(), "the name has 256 bytes"),
        (["get"], b"", "which secret?"),
        (["get", NAME, "--timeout", "0"], b"", "0.0 is not in the range"),
        (["exec", NAME], b"", "there is no program to run"),
        (["exec", "--", "true"], b"", "which secret?"),
        (["exec", NAME, "--environment", "A", "--environment", "B", "--", "true"], b"", "1 names and 2 variables"),
        (["exec", *["n"] * 257, "--", "true"], b"", "257 secrets are too many"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_agent_is_asked(
    secret: Command, agent: MemoryAgent, arguments: list[str], given: bytes, why: str
) -> None:
    errors = secret(*arguments, given=given, status=2)[1]
    assert why in errors
    assert VALUE not in errors
    assert agent.asked == []


def test_a_file_that_is_too_large_is_refused(secret: Command, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 65537)
    assert "larger than 65536 bytes" in secret("set", NAME, "--file", "large", status=5)[1]
    assert "no such file" in secret("set", NAME, "--file", "absent", status=8)[1]


def test_without_an_agent_it_is_said_how_to_get_one(secret: Command, tmp_path: Path) -> None:
    errors = secret("get", NAME, "--socket", str(tmp_path / "none"), status=6)[1]
    assert "tpm-mtls agent run" in errors


def test_at_a_terminal_the_value_is_asked_for_unseen(
    secret: Command, agent: MemoryAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter([VALUE, VALUE, VALUE, "something else"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))
    secret("set", NAME, terminal=True)
    assert agent.secrets == {NAME: VALUE}
    assert "differ" in secret("set", NAME, terminal=True, status=2)[1]


def test_on_a_terminal_the_prompt_gets_a_line_of_its_own(secret: Command) -> None:
    secret("set", NAME, given=VALUE.encode())
    get = [sys.executable, "-m", "tpm_mtls", "secret", "get", NAME]
    assert shown_on_a_terminal(get) == VALUE.encode() + b"\r\n"
    assert subprocess.run(get, capture_output=True, check=True).stdout == VALUE.encode()


def test_a_full_disk_behind_standard_output_is_an_error(secret: Command) -> None:
    secret("set", NAME, given=VALUE.encode())
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [sys.executable, "-m", "tpm_mtls", "secret", "get", NAME], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 8
    assert done.stderr.decode().splitlines() == [
        "tpm-mtls: error: cannot write /dev/stdout: no space left on device",
        "tpm-mtls: hint: make room on that file system, then run the command again",
    ]


SHOWS = """
import json, os, sys
found = {}
for number in map(int, sys.argv[1:]):
    text = os.read(number, 100).decode()
    with open(f"/dev/fd/{number}") as again:
        assert again.read() == text
    try:
        with open(f"/dev/fd/{number}", "r+") as file:
            file.write("x")
    except OSError as error:
        found[number] = [text, error.strerror, os.readlink(f"/proc/self/fd/{number}")]
open_ = [number for number in range(3, 20) if os.path.exists(f"/proc/self/fd/{number}")]
print(json.dumps({"found": found, "open": open_, "arguments": open("/proc/self/cmdline").read(),
                  "environment": open("/proc/self/environ").read(), "input": sys.stdin.read()}))
sys.exit(7)
"""


def test_a_program_gets_secrets_as_sealed_files_in_memory(agent: MemoryAgent) -> None:
    agent.secrets |= {NAME: VALUE, "second": "another value"}
    done = start("exec", NAME, "second", "--", sys.executable, "-c", SHOWS, "3", "4", input=b"its own input")
    assert done.returncode == 7, done.stderr
    seen = json.loads(done.stdout)
    name = "/memfd:secret (deleted)"
    assert seen["found"] == {
        "3": [VALUE, "Operation not permitted", name],
        "4": ["another value", "Operation not permitted", name],
    }
    assert seen["open"] == [3, 4]
    assert seen["input"] == "its own input"
    assert VALUE not in seen["environment"] + seen["arguments"]
    assert NAME not in seen["environment"] + seen["arguments"]


def test_a_program_gets_secrets_as_variables_only_if_told_so(agent: MemoryAgent) -> None:
    agent.secrets |= {NAME: VALUE, "second": "another value"}
    variables = ("--environment", "KEY", "--environment", "OTHER")
    done = start("exec", NAME, "second", *variables, "--", "sh", "-c", 'printf %s "$KEY,$OTHER"; ls /proc/self/fd')
    assert done.stdout.split()[0] == b"sk_live_abc123xyz,another"
    assert done.returncode == 0
    assert b"4" not in done.stdout.split()[-4:]


def test_binary_secrets_are_decoded_for_the_program(agent: MemoryAgent) -> None:
    agent.secrets[NAME] = "AP8K"
    assert start("exec", NAME, "--base64", "--", "cat", "/dev/fd/3").stdout == b"\0\xff\n"


def test_descriptors_of_the_programs_parent_stay(agent: MemoryAgent) -> None:
    """Make's job server, for one, uses 3 and 4."""
    agent.secrets[NAME] = VALUE
    read, write = os.pipe()
    kept = fcntl.fcntl(read, fcntl.F_DUPFD_CLOEXEC, 500)
    try:
        refused = start("exec", NAME, "--first-descriptor", str(kept), "--", "true", pass_fds=[kept])
        assert refused.returncode == 2
        assert b"the file descriptor %d is in use already" % kept in refused.stderr
        assert b"--first-descriptor %d" % (kept + 10) in refused.stderr
        done = start("exec", NAME, "--first-descriptor", "20", "--", "cat", "/dev/fd/20", pass_fds=[kept])
        assert done.stdout == VALUE.encode()
    finally:
        for each in (read, write, kept):
            os.close(each)


def test_the_programs_end_is_the_commands_own(agent: MemoryAgent) -> None:
    agent.secrets[NAME] = VALUE
    assert start("exec", NAME, "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    ignored = "grep SigIgn /proc/self/status"
    alone = subprocess.run(["sh", "-c", ignored], capture_output=True, check=True).stdout
    assert start("exec", NAME, "--", "sh", "-c", ignored).stdout == alone


@pytest.mark.parametrize(
    ("program", "status", "why"),
    [("no-such-program", 127, "there is no program no-such-program"), ("/dev/null", 126, "cannot run /dev/null")],
)
def test_a_program_that_cannot_be_run_is_named(agent: MemoryAgent, program: str, status: int, why: str) -> None:
    agent.secrets[NAME] = VALUE
    done = start("exec", NAME, "--", program)
    assert done.returncode == status
    assert why in done.stderr.decode()
    assert VALUE not in done.stderr.decode()


def test_where_no_more_files_can_be_open_it_is_said(agent: MemoryAgent) -> None:
    agent.secrets[NAME] = VALUE
    limited = 'ulimit -n 64; exec "$@"'
    exec_ = [sys.executable, "-m", "tpm_mtls", "secret", "exec", NAME, "--first-descriptor", "100", "--", "true"]
    done = subprocess.run(["sh", "-c", limited, "sh", *exec_], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the secrets cannot be made files: invalid argument" in done.stderr
    assert "ulimit -n" in done.stderr


def test_no_program_is_started_where_a_secret_lacks(secret: Command, agent: MemoryAgent, tmp_path: Path) -> None:
    agent.secrets[NAME] = VALUE
    secret("exec", NAME, "absent", "--", "touch", "ran", status=10)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "variable", "why"),
    [("a\0b", "KEY", "the secret for KEY has a NUL"), (VALUE, "1KEY", "'1KEY' is no name of a variable")],
)
def test_what_no_variable_can_have_is_refused(
    secret: Command, agent: MemoryAgent, value: str, variable: str, why: str
) -> None:
    agent.secrets[NAME] = value
    errors = secret("exec", NAME, "--environment", variable, "--", "true", status=2)[1]
    assert why in errors
    assert value not in errors


def test_help_has_an_example(secret: Command) -> None:
    for verb in ("set", "get", "del", "exec"):
        assert b"Example:" in secret(verb, "--help")[0]
    assert b"--value" not in secret("set", "--help")[0]
