"""docs/tutorial/page.sh: what each page of the tutorial begins with."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support.tutorial import FOLDER

SERVER = "sh -c 'echo ready; exec sleep 60'"


class Terminal:
    """A reader's shells: each `run` is another terminal, closed at its end without a tidy-up."""

    def __init__(self, home: Path, checkout: Path) -> None:
        self.home, self.checkout = home, checkout
        self.folder = home / "tpm-tutorial"

    def run(self, commands: str, *, status: int = 0, **environment: str) -> str:
        """What ``commands`` print, standard error included."""
        with (self.home / "out").open("wb") as out:  # no pipe: a server that is left would hold it
            done = subprocess.run(
                ["bash", "-c", commands],
                cwd=self.home,
                env={"HOME": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=20,
            )
        printed = (self.home / "out").read_text()
        assert done.returncode == status, printed
        return printed

    def page(self, number: str, commands: str = "", *, status: int = 0, **environment: str) -> str:
        """The same on a page."""
        return self.run(f". ~/tpm-tutorial/page.sh {number}\n{commands}", status=status, **environment)

    def server(self, page: int, name: str) -> int:
        """The process id of a server."""
        return int((self.folder / f"page-{page}" / f"{name}.pid").read_text())


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """In a checkout whose tpm-mtls only says how it is called."""
    program = tmp_path / "checkout" / ".venv" / "bin" / "tpm-mtls"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    program.chmod(0o755)
    script = tmp_path / "checkout" / "docs" / "tutorial" / "page.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(FOLDER / "page.sh", script)
    terminal = Terminal(tmp_path, tmp_path / "checkout")
    terminal.folder.mkdir()
    (terminal.folder / "page.sh").symlink_to(script)
    return terminal


def _ended(pid: int) -> bool:
    """Whether the process is no more; init collects an orphan a little later."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_a_new_terminal_knows_tpm_mtls_and_is_in_the_pages_folder(terminal: Terminal) -> None:
    printed = terminal.page("2", "command -v tpm-mtls; pwd")
    assert printed.splitlines() == [
        str(terminal.checkout / ".venv" / "bin" / "tpm-mtls"),
        str(terminal.folder / "page-2"),
    ]


def test_it_says_what_is_missing(terminal: Terminal) -> None:
    shutil.rmtree(terminal.checkout / ".venv")
    assert "./run setup in " + str(terminal.checkout) in terminal.page("2", status=1)


def test_another_pages_variables_are_taken_back(terminal: Terminal) -> None:
    names = ("OPENSSL_CONF", "OPENSSL_MODULES", "TPM2OPENSSL_TCTI", "TPM_MTLS_TCTI", "TPM2TOOLS_TCTI")
    assert terminal.page("2", "env | grep -e OPENSSL -e TCTI", status=1, **dict.fromkeys(names, "x")) == ""


def test_a_page_begins_with_what_the_page_before_left(terminal: Terminal) -> None:
    terminal.page("3", "echo three > made")
    assert terminal.page("4", "cat made; echo four > made") == "three\n"
    assert terminal.page("5", "cat made") == "four\n"
    assert terminal.page("3", "cat made") == "three\n", "a page changes only its own folder"


def test_a_copy_that_is_older_than_the_work_it_was_made_of_is_told(terminal: Terminal) -> None:
    terminal.page("3", "echo unfinished > made")
    assert terminal.page("4") == ""
    assert terminal.page("4", "touch made") == "", "its own work is no matter"
    terminal.page("3", "sleep 0.02; echo finished > made")
    assert "page.sh 4 again\n" in terminal.page("4")
    assert terminal.page("4 again", "cat made") == "finished\n"
    assert terminal.page("4") == ""


def test_pages_8_to_14_begin_with_page_7(terminal: Terminal) -> None:
    terminal.page("7", "echo company > made")
    terminal.page("8", "echo eight > made")
    for page in ("9", "10", "14"):
        assert terminal.page(page, "cat made") == "company\n"


def test_a_page_without_the_one_that_it_builds_on_says_so(terminal: Terminal) -> None:
    assert "page 9 builds on page 7" in terminal.page("9", status=1)
    assert "which page?" in terminal.page("15", status=2)
    assert "which page?" in terminal.page("", status=2)


def test_again_removes_what_that_page_made_and_nothing_else(terminal: Terminal) -> None:
    terminal.page("7", "echo company > made")
    terminal.page("8", "echo eight > made; touch other")
    assert terminal.page("8", "cat made") == "eight\n"
    assert terminal.page("8 again", "cat made; ls") == "company\nmade\n"
    assert terminal.page("7", "cat made") == "company\n"


def test_what_a_closed_terminal_left_running_is_ended(terminal: Terminal) -> None:
    terminal.page("3", f"up server {SERVER}")
    left = terminal.server(3, "server")
    assert Path(f"/proc/{left}").exists()
    terminal.page("2")
    assert _ended(left)


def test_down_ends_what_another_terminal_began(terminal: Terminal) -> None:
    terminal.page("2")
    terminal.page("3", f"up one {SERVER}\nup two {SERVER}")
    pids = [terminal.server(3, "one"), terminal.server(3, "two")]
    (terminal.folder / "page-3" / "tpm").mkdir()
    (terminal.folder / "page-3" / "tpm" / "swtpm.pid").touch()
    terminal.page("3", "down")
    assert all(map(_ended, pids))
    assert f"simulator stop --dir {terminal.folder}/page-3/tpm" in (terminal.home / "called").read_text()


def test_a_simulated_tpm_stays_on_for_its_page_in_a_new_terminal(terminal: Terminal) -> None:
    terminal.page("3", "mkdir tpm; touch tpm/swtpm.pid")
    terminal.page("3")
    assert not (terminal.home / "called").exists(), "its PCRs are as they were"
    terminal.page("4")
    assert (terminal.home / "called").read_text() == "simulator stop --dir page-3/tpm\n"


def test_down_with_a_name_ends_that_server_alone(terminal: Terminal) -> None:
    printed = terminal.page("3", f"up one {SERVER}\nup two {SERVER}\ndown one\nls *.pid\ndown")
    assert printed == "two.pid\n"


def test_a_number_that_is_another_programs_by_now_is_left_alone(terminal: Terminal) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=terminal.home) as other:
        try:
            terminal.page("3", f"echo {other.pid} > server.pid\ndown")
            assert other.poll() is None
            assert not (terminal.folder / "page-3" / "server.pid").exists()
        finally:
            other.kill()


def test_up_waits_for_the_server_that_it_started_not_for_what_another_left(terminal: Terminal) -> None:
    late = "sh -c 'sleep 0.3; echo late; exec sleep 60'"
    assert terminal.page("3", f"echo stale > server.out\nup server {late}\ncat server.out\ndown") == "late\n"


def test_up_once_more_replaces_the_server(terminal: Terminal) -> None:
    terminal.page("3", f"up server {SERVER}\ncp server.pid first\nup server {SERVER}")
    assert _ended(int((terminal.folder / "page-3" / "first").read_text()))
    terminal.page("3", "down")


def test_a_server_that_does_not_come_up_is_told_at_once_with_its_reason(terminal: Terminal) -> None:
    printed = terminal.page("3", "up server sh -c 'echo no port is free >&2; exit 10'", status=1)
    assert printed.splitlines() == ["server does not run; the last lines of server.log:", "no port is free"]
    assert not (terminal.folder / "page-3" / "server.pid").exists()


def test_it_works_in_a_shell_that_stops_at_errors(terminal: Terminal) -> None:
    terminal.run(f"set -eu\n. ~/tpm-tutorial/page.sh 3\nup server {SERVER}\ndown\n. ~/tpm-tutorial/page.sh 3\ndown")


def test_another_shell_is_told(terminal: Terminal) -> None:
    (terminal.home / "other.sh").write_text(f"unset BASH_VERSION\n. {os.fspath(terminal.folder / 'page.sh')} 3\n")
    assert "type bash first" in terminal.run("bash other.sh")
