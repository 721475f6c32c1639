"""The traced program is as it would be without: its signals, its exit status, its input and output."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.trace import runner
from tpm_mtls.trace.runner import run_traced

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SHELL = ("sh", "-c")
LIBRARYS_OWN = 1 << 31 | 1 << 32  # SIGCANCEL and SIGSETXID, which glibc's posix_spawn leaves ignored


class Told:
    """The lines, and when they came."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.first = threading.Event()

    def __call__(self, line: bytes) -> None:
        self.lines.append(line)
        self.first.set()


def environment(pipe: Path) -> Mapping[str, str]:
    return os.environ | {"TRACE": str(pipe)}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which must be empty at the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("program", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143)])
def test_the_exit_status_is_a_shells(temporary: Path, program: str, status: int) -> None:
    assert run_traced([*SHELL, program], environment, Told()) == status
    assert list(temporary.iterdir()) == []


def test_lines_come_while_the_program_runs(temporary: Path) -> None:
    told = Told()
    seen = []

    def look() -> None:
        seen.append(told.first.wait(10))
        (temporary / "go").touch()

    watching = threading.Thread(target=look)
    watching.start()
    program = 'printf "one\\ntw" >"$TRACE"; while ! [ -e "$0" ]; do sleep 0.01; done; printf "o\\n" >"$TRACE"'
    assert run_traced([*SHELL, program, str(temporary / "go")], environment, told) == 0
    watching.join()
    assert seen == [True]
    assert told.lines == [b"one", b"two"]


def test_the_pipe_lies_in_a_private_folder_that_is_gone_at_the_end(temporary: Path) -> None:
    program = 'stat -c "%a %F" "$TRACE" "$(dirname "$TRACE")" >"$0"'
    assert run_traced([*SHELL, program, str(temporary / "said")], environment, Told()) == 0
    assert (temporary / "said").read_text() == "600 fifo\n700 directory\n"
    assert [path.name for path in temporary.iterdir()] == ["said"]


@pytest.mark.parametrize("name", ["no-such-program", "/"])
def test_a_program_that_cannot_be_run_leaves_nothing(temporary: Path, name: str) -> None:
    with pytest.raises(OSError, match=name):
        run_traced([name], environment, Told())
    assert list(temporary.iterdir()) == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_what_relays_write_after_the_programs_end_is_read_too(temporary: Path) -> None:
    told = Told()
    program = 'exec 3>"$TRACE"; { sleep 0.2; echo late >&3; } & exit 0'
    assert run_traced([*SHELL, program], environment, told) == 0
    assert told.lines == [b"late"]
    assert list(temporary.iterdir()) == []


def test_a_program_left_in_the_background_is_not_waited_for(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LINGER", 0.2)
    told = []

    def tell(line: bytes) -> None:
        told.append(line)
        (temporary / "go").touch()

    program = '{ echo early; exec sleep 60; } >"$TRACE" & echo $!; while ! [ -e "$0" ]; do sleep 0.01; done; exit 4'
    started = time.monotonic()
    assert (
        run_traced(
            [*SHELL, f'{{ {program}; }} >"$1"', str(temporary / "go"), str(temporary / "pid")], environment, tell
        )
        == 4
    )
    assert time.monotonic() - started < 30
    os.kill(int((temporary / "pid").read_text()), signal.SIGTERM)
    assert told == [b"early"]


def test_where_the_end_of_children_is_ignored_the_status_is_still_known(temporary: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run_traced([*SHELL, "exit 5"], environment, Told()) == 5
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert list(temporary.iterdir()) == []


def test_the_program_gets_the_signal_dispositions_of_a_program_that_is_not_traced(temporary: Path) -> None:
    command = [*SHELL, 'grep -E "^Sig(Ign|Blk)" /proc/self/status >"$0"']
    subprocess.run([*command, str(temporary / "untraced")], check=True)
    assert run_traced([*command, str(temporary / "traced")], environment, Told()) == 0
    traced, untraced = (
        [int(line.split()[1], 16) & ~LIBRARYS_OWN for line in (temporary / name).read_text().splitlines()]
        for name in ("traced", "untraced")
    )
    assert traced == untraced
