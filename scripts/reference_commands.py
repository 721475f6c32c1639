"""The command line as Markdown: a page for each noun, and their index."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reference_cli import Block, Command, Option

WIDTH = 120
MADE = "<!-- made by scripts/reference.py: change the help of the command instead -->"
_SPECIAL = re.compile(r"([\\*<>\[\]]|\b_|_\b)")
_OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z0-9-]*(?:=[a-z]+)?)")


def command_pages(root: Command) -> dict[str, str]:
    """The pages by their file names."""
    return {"README.md": _index(root)} | {f"{noun.path[1]}.md": _page(noun, root) for noun in root.commands}


def _index(root: Command) -> str:
    parts = ["# Commands", MADE]
    parts += _blocks(root.blocks)
    for noun in root.commands:
        page = f"{noun.path[1]}.md"
        parts.append(
            "\n".join(f"- [`{each.name}`]({page}#{_anchor(each)})  \n  {each.summary}" for each in noun.walk())
        )
    parts += ["## Options before the command", *_options(root)]
    parts += ["## Exit status", *_blocks(root.epilog, drop="Exit status:\n"), "[All pages](../../README.md)"]
    return _joined(parts)


def _page(noun: Command, root: Command) -> str:
    parts = [f"# {noun.name}", MADE]
    for command in noun.walk():
        if command is not noun:
            parts.append(f"## {command.name}")
        parts += _command(command)
    parts.append(f"[All commands, and the exit status](README.md) of `{root.name}`.")
    return _joined(parts)


def _command(command: Command) -> Iterator[str]:
    yield f"```text\n{command.name} {command.usage}\n```"
    yield from _blocks(command.blocks)
    if command.commands:
        yield "\n".join(f"- [`{each.name}`](#{_anchor(each)})  \n  {each.summary}" for each in command.commands)
    else:
        yield from _options(command)
    yield from _blocks(command.epilog)


def _options(command: Command) -> Iterator[str]:
    if command.options:
        yield "\n".join(_option(option) for option in command.options)


def _option(option: Option) -> str:
    details = f" ({'; '.join(option.details)})" if option.details else ""
    return f"- `{option.names}`  \n  {_wrapped(option.text + details, '  ')}"


def _blocks(blocks: Iterable[Block], drop: str = "") -> Iterator[str]:
    for block in blocks:
        if example := block.example():
            yield f"Example:\n\n```sh\n{example}\n```"
        elif block.literal:
            yield f"```text\n{block.text.removeprefix(drop)}\n```"
        else:
            yield _wrapped(block.text)


def _wrapped(text: str, indent: str = "") -> str:
    escaped = _OPTION.sub(r"`\1`", _SPECIAL.sub(r"\\\1", text))
    lines = textwrap.wrap(escaped, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
    return f"\n{indent}".join(lines)


def _anchor(command: Command) -> str:
    """As GitHub makes it from the heading."""
    return command.name.replace(" ", "-")


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"
