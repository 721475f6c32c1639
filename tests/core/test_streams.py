"""What a command writes to standard output: byte for byte; on a terminal the prompt gets a line of its own."""

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from support.terminal import shown_on_a_terminal
from tpm_mtls.errors import StorageError
from tpm_mtls.streams import write_output, write_raw

if TYPE_CHECKING:
    from pathlib import Path

WRITES = "import sys; from tpm_mtls.streams import write_output; write_output(None, bytes.fromhex(sys.argv[1]))"


def written(data: bytes) -> list[str]:
    """The command that writes ``data`` to its standard output."""
    return [sys.executable, "-c", WRITES, data.hex()]


@pytest.mark.parametrize(
    ("data", "shown"),
    [(b"no newline", b"no newline\r\n"), (b"a newline\n", b"a newline\r\n"), (b"two\n\n", b"two\r\n\r\n")],
)
def test_on_a_terminal_what_is_there_ends_with_one_newline(data: bytes, shown: bytes) -> None:
    assert shown_on_a_terminal(written(data)) == shown


def test_on_a_terminal_nothing_stays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", _Terminal(shown))
    write_raw(b"")
    assert shown.getvalue() == b""


@pytest.mark.parametrize("data", [b"no newline", b"a newline\n", b"\0\xff", b""])
def test_elsewhere_nothing_is_added(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        write_raw(data)
    assert (tmp_path / "out").read_bytes() == data


def test_a_file_gets_what_it_is_given(tmp_path: Path) -> None:
    write_output(tmp_path / "secret", b"no newline")
    assert (tmp_path / "secret").read_bytes() == b"no newline"


def test_who_reads_no_more_makes_it_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as pipe, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", SimpleNamespace(buffer=pipe, isatty=lambda: False))
        with pytest.raises(StorageError, match="cannot write /dev/stdout: broken pipe"):
            write_raw(b"for nobody")


class _Terminal(io.TextIOWrapper):
    """A standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True
