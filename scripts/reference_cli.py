"""What the command line says about itself, as data: from click's own objects, so that nothing is told twice."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli import main
from tpm_mtls.command_group import first_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

_LITERAL = "\b"  # click's marker: this paragraph is not wrapped anew
_EXAMPLE = re.compile(r"Examples?: ?\n?(?P<commands>.*)", re.DOTALL)
_DETAILS = re.compile(r"(?P<text>.*?)  \[(?P<details>[^\[\]]*)\]", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A paragraph; a literal one keeps its lines."""

    text: str
    literal: bool = False

    def example(self) -> str | None:
        """The commands of a paragraph that is an example."""
        found = _EXAMPLE.fullmatch(self.text)
        return textwrap.dedent(found["commands"]) if found else None


@dataclass(frozen=True)
class Option:
    """An option, or an argument.

    Attributes:
        names: as typed, with what it takes, such as ``--out FILE``.
        text: what it is for.
        details: default, range, whether it is required.
    """

    names: str
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A command, or a group of commands.

    Attributes:
        path: its words, ``tpm-mtls`` first.
        summary: the first sentence of its help.
        usage: what follows its words.
        blocks: its help.
        options: its options, in the order of the help.
        epilog: its examples, or what else the help ends with.
        commands: those of a group.
    """

    path: tuple[str, ...]
    summary: str
    usage: str
    blocks: tuple[Block, ...]
    options: tuple[Option, ...]
    epilog: tuple[Block, ...]
    commands: tuple[Command, ...]

    @property
    def name(self) -> str:
        """Its words, with spaces between."""
        return " ".join(self.path)

    def walk(self) -> Iterator[Command]:
        """Itself, and all below."""
        yield self
        for command in self.commands:
            yield from command.walk()


def command_line() -> Command:
    """The whole command line as it is installed."""
    return describe(main, click.Context(main, info_name="tpm-mtls", **main.context_settings))


def describe(command: click.Command, context: click.Context) -> Command:
    """``command``, and all below, as called in ``context``."""
    children: list[Command] = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                children.append(describe(child, click.Context(child, info_name=name, parent=context)))
    return Command(
        path=_path(context),
        summary=first_sentence(command.help),
        usage=" ".join(command.collect_usage_pieces(context)),
        blocks=blocks(command.help),
        options=tuple(_options(command, context)),
        epilog=blocks(command.epilog),
        commands=tuple(children),
    )


def blocks(text: str | None) -> tuple[Block, ...]:
    """The paragraphs of a help text."""
    return tuple(_block(part) for part in re.split(r"\n\s*\n", inspect.cleandoc(text or "")) if part.strip())


def _block(part: str) -> Block:
    marker, _, rest = part.partition("\n")
    if marker.strip(" ") == _LITERAL:
        return Block(inspect.cleandoc("\n" + rest.replace(_LITERAL, "")), literal=True)
    return Block(" ".join(part.split()))


def _path(context: click.Context) -> tuple[str, ...]:
    # Context.command_path has the arguments of groups in it, too
    return (*_path(context.parent), context.info_name or "") if context.parent else (context.info_name or "",)


def _options(command: click.Command, context: click.Context) -> Iterator[Option]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or (isinstance(parameter, click.Argument) and not record[1]):
            continue
        names, text = record
        details: list[str] = []
        while found := _DETAILS.fullmatch(text):
            text, details = found["text"], [*found["details"].split("; "), *details]
        yield Option(names, text, tuple(details))
