"""A hint's commands, with the places that the user named: where he gave --state-dir, the next command needs it, too."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PLACES: Final = ("--tcti", "--state-dir", "--run-dir", "--socket", "--ca-dir", "--database")
"""The options that say where something is."""

_COMMAND = re.compile(r"\btpm-mtls((?: [a-z0-9][a-z0-9-]*)+)")
_PASSWORD = re.compile(r"://[^@]*:[^@]*@")


def named_places(arguments: Iterable[str]) -> dict[str, str]:
    """Which of the `PLACES` are among the ``arguments`` of a command line, with their values; the last one counts."""
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word == "--":  # what follows is another program's
            break
        option, equals, value = word.partition("=")
        if option in PLACES:
            found[option] = value if equals else next(words, "")
    return found


def with_places(hint: str, places: dict[str, str], program: click.Group) -> str:
    """``hint``, with each ``tpm-mtls …`` in it completed by those of the ``places`` that its command takes.

    An option that the hint names itself is not added, nor a database's URL with a password in it.

    Args:
        hint: of an error.
        places: from `named_places`.
        program: the command ``tpm-mtls``.
    """
    wanted = {option: value for option, value in places.items() if _may_show(value) and option not in hint}
    if not wanted:
        return hint
    return _COMMAND.sub(lambda found: _completed(found[1].split(), wanted, program), hint)


def _may_show(value: str) -> bool:
    return bool(value) and not _PASSWORD.search(value)


def _completed(words: Sequence[str], places: dict[str, str], program: click.Group) -> str:
    command, depth = _called(words, program)
    taken = {option for parameter in command.params for option in parameter.opts}
    added = [part for option in places if option in taken for part in (option, shlex.quote(places[option]))]
    return " ".join(["tpm-mtls", *words[:depth], *added, *words[depth:]])


def _called(words: Sequence[str], program: click.Group) -> tuple[click.Command, int]:
    """The command that ``words`` begin with, and how many of them are its name."""
    command: click.Command = program
    for depth, word in enumerate(words):
        context = click.Context(command)
        child = command.get_command(context, word) if isinstance(command, click.Group) else None
        if child is None:
            return command, depth
        command = child
    return command, len(words)
