"""The command line as manual pages: one for ``tpm-mtls``, and one for each noun (man-pages(7), groff_man(7))."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reference_cli import Block, Command, Option

_MADE = r".\" made by scripts/reference.py: change the help of the command instead"
# groff_char(7): what would be set as typographic characters, and could not be copied
_LETTERS = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"})
_METAVAR = re.compile(r"(--?[a-zA-Z][\w-]*)")


def man_pages(root: Command, version: str) -> dict[str, str]:
    """The pages by their file names; they have no date, so that they change only with what they say."""
    pages = {f"{root.name}.1": _root_page(root, version)}
    return pages | {f"{'-'.join(noun.path)}.1": _noun_page(noun, version) for noun in root.commands}


def _root_page(root: Command, version: str) -> str:
    lines = [*_head(root, version), ".SH COMMANDS"]
    for noun in root.commands:
        lines += [".TP", rf".BR {_text('-'.join(noun.path))} (1)", _text(noun.summary)]
    lines += [".SH OPTIONS", *_options(root.options)]
    lines += [".SH EXIT STATUS", *blocks(root.epilog, drop="Exit status:\n")]
    return _joined(lines)


def _noun_page(noun: Command, version: str) -> str:
    lines = _head(noun, version)
    verbs = [command for command in noun.walk() if not command.commands]
    if noun.commands:
        lines.append(".SH COMMANDS")
    for verb in verbs:
        if verb is not noun:
            lines += [f".SS {_text(verb.name)} {_text(verb.usage)}", *blocks(verb.blocks)]
        else:
            lines.append(".SH OPTIONS")
        lines += _options(verb.options)
        if verb is noun:
            lines.append(".SH EXAMPLES")
        lines += blocks(verb.epilog)
    lines += [".SH SEE ALSO", r".BR tpm\-mtls (1)"]
    return _joined(lines)


def _head(command: Command, version: str) -> list[str]:
    name, summary = "-".join(command.path), command.summary
    if summary[1:2].islower():
        summary = summary[:1].lower() + summary[1:]
    return [
        _MADE,
        f'.TH {_text(name.upper())} 1 "" "tpm\\-mtls {_text(version)}" "tpm\\-mtls"',
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{_text(name)} \- {_text(summary)}",
        ".SH SYNOPSIS",
        f".B {_text(command.name)}",
        _text(command.usage),
        ".SH DESCRIPTION",
        *blocks(command.blocks, first=True),
    ]


def _options(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        details = f" ({'; '.join(option.details)})" if option.details else ""
        yield ".TP"
        yield _METAVAR.sub(r"\\fB\1\\fR", option.names).translate({ord("-"): r"\-", ord("|"): r"|\:"})
        yield _text(option.text + details)


def blocks(paragraphs: Iterable[Block], *, first: bool = False, drop: str = "") -> Iterator[str]:
    """The lines of help paragraphs; ``first`` needs no space before it, ``drop`` is left out of literal ones."""
    for number, block in enumerate(paragraphs):
        if example := block.example():
            yield from (".PP", "Example:", ".PP", ".in +4n", ".nf", *map(_text, example.splitlines()), ".fi", ".in")
        elif block.literal:
            yield from (".PP", ".nf", *map(_text, block.text.removeprefix(drop).splitlines()), ".fi")
        else:
            if number or not first:
                yield ".PP"
            yield _text(block.text)


def _text(text: str) -> str:
    """``text`` so that groff prints just that; a line that begins with a dot or quote would be a request."""
    escaped = text.translate(_LETTERS)
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
