"""Other programs that a command runs: what is said, as in a shell, of one that cannot be run."""

from __future__ import annotations

import signal
from typing import Final

import click

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit statuses of POSIX shells: there is no such program; it cannot be run."""

IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that a program shall not ignore only because this process does."""


def cannot_run(program: str, error: OSError) -> int:
    """Says on stderr why ``program`` was not run; returns the exit status that a shell has then."""
    if isinstance(error, FileNotFoundError):
        message, hint, status = f"there is no program {program}", "check its name and PATH", NOT_FOUND
    else:
        message = f"cannot run {program}: {(error.strerror or str(error)).lower()}"
        hint, status = "check that it is a program, and that this user may run it", NOT_EXECUTABLE
    click.echo(f"tpm-mtls: error: {message}\ntpm-mtls: hint: {hint}", err=True)
    return status
