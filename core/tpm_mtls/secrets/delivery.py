"""Secrets handed to a program: as open files in memory, or as environment variables.

A file in memory is in no file system, no list of arguments and no environment, and what the program starts in turn gets
it only if the program wants that. memfd_create(2), fcntl(2) F_ADD_SEALS.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
from typing import TYPE_CHECKING, Final, NoReturn

from tpm_mtls.errors import UsageError
from tpm_mtls.programs import IGNORED_BY_PYTHON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST_DESCRIPTOR: Final = 3
"""The first after standard error, where systemd's protocol begins, too (sd_listen_fds(3))."""

DESCRIPTORS: Final = 256
"""How many secrets one program gets at the most."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # POSIX.1-2017, 8.1


def check_descriptors(first: int, count: int) -> None:
    """Checks that the descriptors from ``first`` on are free: the program's parent may have meant it to have them.

    Raises:
        UsageError: one is open, and not only for this process; or there are too many.
    """
    if count > DESCRIPTORS:
        raise UsageError(f"{count} secrets are too many", hint=f"at most {DESCRIPTORS} for one program")
    for descriptor in range(first, first + count):
        if _is_inherited(descriptor):
            raise UsageError(
                f"the file descriptor {descriptor} is in use already",
                hint=f"begin at another one, such as --first-descriptor {first + 10}",
            )


def give_as_descriptors(values: Sequence[bytes], first: int) -> None:
    """Makes ``values`` readable as the file descriptors ``first``, ``first`` + 1, …, for the program that is run next.

    Each is a sealed file in memory, at its beginning: nobody changes it any more. Whatever this process itself had
    open at these numbers is closed; see `check_descriptors`.

    Raises:
        UsageError: this process may not have so many open files.
    """
    beyond = first + len(values)
    try:
        made = [_in_memory(value, beyond) for value in values]
    except OSError as error:
        raise UsageError(
            f"the secrets cannot be made files: {(error.strerror or str(error)).lower()}",
            hint="is the limit of open files too low (ulimit -n), or no memory free?",
        ) from error
    for number, descriptor in enumerate(made, first):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)


def with_variables(values: Mapping[str, bytes], environment: Mapping[str, str]) -> dict[bytes, bytes]:
    """``environment``, and ``values`` by the names of their variables.

    Raises:
        UsageError: a variable's name is none, or a value has a NUL, which no variable can have.
    """
    found = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
    for name, value in values.items():
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"{name[:40]!r} is no name of a variable", hint="letters, digits and underscores")
        if b"\0" in value:
            raise UsageError(
                f"the secret for {name} has a NUL in it, which no variable can have", hint="leave --environment out"
            )
        found[name.encode()] = value
    return found


def become(command: Sequence[str], environment: Mapping[bytes, bytes]) -> NoReturn:
    """Lets the program ``command`` take this process's place.

    Raises:
        OSError: there is no such program, or it cannot be run.
    """
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(command[0], list(command), environment)  # noqa: S606 - no shell is wanted


def _is_inherited(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def _in_memory(value: bytes, lowest: int) -> int:
    """A sealed file in memory that holds ``value``, at a descriptor from ``lowest`` on. Its name tells nothing."""
    with os.fdopen(os.memfd_create("secret", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb") as file:
        file.write(value)
        file.flush()
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        file.seek(0)
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, lowest)
