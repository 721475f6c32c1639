"""Other commands, run by the agent as children: ``tpm-mtls keygen renew`` and ``restore``, and what follows."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.children import child_environment, end_child
from tpm_mtls.errors import TpmMtlsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TIME: Final = 600.0  # seconds for a renewal: an RSA key takes a chip a minute, a CA that is slow to answer another
_FOLLOWING_TIME: Final = 120.0  # seconds for what is run after a renewal
_SAID_LIMIT: Final = 64 * 1024  # bytes of an answer, and of complaints
_SHOWN: Final = 400  # characters of each line


class Changed(msgspec.Struct, frozen=True):
    """What these commands answer with ``--json``.

    Attributes:
        changed: whether they did anything.
    """

    changed: bool


async def keygen(verb: str, options: Sequence[str]) -> Changed:
    """What ``tpm-mtls keygen VERB OPTIONS --json`` answers.

    Raises:
        TpmMtlsError: it failed, with its own text and hint; or it took too long.
    """
    command = [sys.executable, "-P", "-m", "tpm_mtls", "keygen", verb, *options, "--json"]
    status, said, complaints = await _run(command, child_environment(), _TIME)
    if status:
        raise _failure(f"tpm-mtls keygen {verb}", status, complaints)
    try:
        return msgspec.json.decode(said, type=Changed)
    except msgspec.DecodeError as error:
        raise TpmMtlsError(f"tpm-mtls keygen {verb} gave no usable answer", hint="is it another version?") from error


def split_command(text: str) -> tuple[str, ...]:
    """The words of a command line, as a shell splits it.

    Raises:
        UsageError: it has none, or a quotation mark too many.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"not a command: {text[:80]!r}", hint="quote it as for a shell") from error
    if not words:
        raise UsageError("the command is empty", hint='for example --on-renewal "systemctl reload nginx"')
    return words


async def after_renewal(command: Sequence[str], folder: Path) -> None:
    """Runs ``command``, without a shell; it finds the identity folder in TPM_MTLS_STATE_DIR.

    Raises:
        TpmMtlsError: it cannot be run, failed, or took too long.
    """
    status, _, complaints = await _run(
        command, child_environment() | {"TPM_MTLS_STATE_DIR": str(folder)}, _FOLLOWING_TIME
    )
    if status:
        raise _failure(f"the command {command[0]!r} of --on-renewal", status, complaints)


async def _run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> tuple[int, bytes, bytes]:
    """Exit status, and what it said on stdout and stderr."""
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=nothing, stdout=pipe, stderr=pipe, env=environment, cwd=os.sep
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TpmMtlsError(f"cannot run {command[0]!r}: {reason}", hint="check its path and mode") from error
    try:
        async with asyncio.timeout(seconds):
            said, complaints = await child.communicate()
    except TimeoutError as error:
        raise TpmMtlsError(
            f"{command[0]!r} was ended after {seconds:g} seconds", hint="run it by hand to see what it waits for"
        ) from error
    finally:
        await end_child(child)
    return child.returncode or 0, said[:_SAID_LIMIT], complaints[:_SAID_LIMIT]


def _failure(what: str, status: int, complaints: bytes) -> TpmMtlsError:
    """The error that the last lines of ``complaints`` tell, in the shape in which `tpm_mtls.cli` prints it."""
    lines = [line.strip()[:_SHOWN] for line in complaints.decode(errors="replace").splitlines() if line.strip()]
    told = {kind: line.removeprefix(mark) for line in lines for kind, mark in _MARKS.items() if line.startswith(mark)}
    message = told.get("error") or f"it ended with status {status}" + (f": {lines[-1]}" if lines else "")
    return TpmMtlsError(f"{what} failed: {message}", hint=told.get("hint") or "run it by hand to see more")


_MARKS: Final = {"error": "tpm-mtls: error: ", "hint": "tpm-mtls: hint: "}
