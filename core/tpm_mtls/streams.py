"""Secrets on their way in and out of a command: a file, or standard input and output, byte for byte."""

from __future__ import annotations

import sys
from pathlib import Path

from tpm_mtls.authorization import read_secret
from tpm_mtls.errors import UsageError
from tpm_mtls.files import PRIVATE_FILE, read_capped, storage_errors, write_atomic


def read_input(path: Path | None, *, limit: int, what: str, typed: bool = True) -> bytes:
    """What is in the file ``path``, or comes on standard input.

    Args:
        path: the file; none for standard input.
        limit: bytes at the most.
        what: what it is, for the prompt and the errors.
        typed: at a terminal, ask for a line, unseen, twice.

    Raises:
        UsageError: there is none, or it has more than ``limit`` bytes.
        PemError: the file has more than ``limit`` bytes.
        StorageError: it cannot be read.
    """
    if path is not None:
        data = read_capped(path, limit=limit)
    elif sys.stdin.isatty():
        if not typed:
            raise UsageError(f"there is no {what}", hint="name its file, or send it to standard input")
        data = read_secret("prompt", what=what, confirm=True).value
    else:
        with storage_errors(Path("/dev/stdin"), "read"):
            data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise UsageError(f"the {what} has more than {limit} bytes", hint="this is not what was meant")
    if not data:
        raise UsageError(f"the {what} is empty", hint="did the program that should write it fail?")
    return data


def write_output(path: Path | None, data: bytes, *, mode: int = PRIVATE_FILE, hand_over: bool = False) -> None:
    """Writes ``data`` to the new file ``path`` (atomically, with ``mode``), or to standard output.

    A secret that root takes out stays root's, in whosever folder that is, but for ``hand_over``.

    Raises:
        StateError: the file exists.
        StorageError: it cannot be written.
    """
    if path is not None:
        write_atomic(path, data, mode=mode, replace=False, hand_over=hand_over)
    else:
        write_raw(data)


def write_raw(data: bytes) -> None:
    """Writes ``data`` to standard output, byte for byte; on a terminal what is there ends with a newline.

    Raises:
        StorageError: it cannot be written.
    """
    output = sys.stdout
    try:
        with storage_errors(Path("/dev/stdout"), "write"):
            output.buffer.write(data)
            if data and not data.endswith(b"\n") and output.isatty():
                output.buffer.write(b"\n")  # else the shell's prompt stands behind it in the same line
            output.buffer.flush()
    except BaseException:
        sys.stdout = None  # as in a process without one: what is left in its buffer is not tried again at exit
        raise
