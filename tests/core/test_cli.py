"""The command line finds the components, and answers every error in one shape."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from tpm_mtls import cli
from tpm_mtls.cli_options import answer, progress
from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

Run = subprocess.CompletedProcess[str]


def tpm_mtls(*arguments: str) -> Run:
    return subprocess.run([sys.executable, "-m", "tpm_mtls", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Makes ``tpm-mtls probe`` run a function, found as a component's command is: through an entry point."""

    def add(function: Callable[[], object]) -> None:
        monkeypatch.setattr(sys.modules[__name__], "probe", click.command("probe")(function), raising=False)
        found = EntryPoint("probe", f"{__name__}:probe", "tpm_mtls.commands")
        monkeypatch.setattr(cli, "entry_points", lambda *, group: [found] if group == "tpm_mtls.commands" else [])

    return add


def test_help_lists_every_component_and_the_exit_codes() -> None:
    done = tpm_mtls("--help")
    assert done.returncode == 0
    for name in ("client", "keygen", "openssl-env", "pki", "server", "simulator"):
        assert f"\n  {name} " in done.stdout
    assert "exit status" in done.stdout.lower()


def test_an_error_is_two_lines_on_stderr_and_its_exit_code(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise UsageError("that is wrong", hint="do it so")

    add_command(fail)
    assert cli.run(["probe"]) == 2
    assert capsys.readouterr() == ("", "tpm-mtls: error: that is wrong\ntpm-mtls: hint: do it so\n")


def test_debug_adds_the_traceback(add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UsageError("that is wrong", hint="do it so")

    add_command(fail)
    assert cli.run(["--debug", "probe"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_called_one_and_shows_no_traceback(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(lambda: {}["missing"])
    assert cli.run(["probe"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("tpm-mtls: error: internal: KeyError: 'missing'\ntpm-mtls: hint: this is a bug")
    assert "Traceback" not in message


def test_an_interrupt_ends_with_130(add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    add_command(interrupted)
    assert cli.run(["probe"]) == 130
    assert capsys.readouterr().err.strip() == "tpm-mtls: interrupted"


def test_a_component_that_offers_no_command_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = EntryPoint("probe", "os:sep", "tpm_mtls.commands")
    monkeypatch.setattr(cli, "entry_points", lambda *, group: [found] if group else [])
    assert cli.run(["probe"]) == 1
    assert "os:sep is no click command" in capsys.readouterr().err


def test_an_unknown_command_points_to_the_help() -> None:
    done = tpm_mtls("no-such-thing")
    assert done.returncode == 2
    assert done.stderr == "tpm-mtls: error: no such command 'no-such-thing'\ntpm-mtls: hint: see tpm-mtls --help\n"


def test_a_missing_option_points_to_the_commands_own_help() -> None:
    done = tpm_mtls("simulator", "start")
    assert done.returncode == 2
    assert (
        done.stderr == "tpm-mtls: error: missing option '--dir'\ntpm-mtls: hint: see tpm-mtls simulator start --help\n"
    )


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "tpm_mtls", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from tpm_mtls.cli import run; run(['--help'])\n"
        "heavy = {'tpm2_pytss', 'cryptography', 'sqlalchemy', 'aiohttp', 'rich', 'urllib3'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_answer_is_text_for_a_person_and_json_for_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    answer({"a": 1}, "a is one", as_json=False)
    answer({"a": 1}, "a is one", as_json=True)
    assert capsys.readouterr().out == 'a is one\n{"a":1}\n'


def test_progress_is_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress("working")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress("working")
    assert capsys.readouterr().err == "working\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_for_which_there_is_no_room_is_no_bug(options: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tpm_mtls", "explain", "0x9a2", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 8
    assert done.stderr.startswith("tpm-mtls: error: cannot write the answer: no space left on device\n")
