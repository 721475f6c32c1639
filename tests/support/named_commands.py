"""Which commands and options of ours a text names, and those of them that do not exist."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpm_mtls.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
COMPONENTS = ("core", "keygen", "client", "server", "pki", "relay", "agent", "simulator", "scripts")

_CALLED = re.compile(
    r"(?:(?<![\w.$:{-])[\w./-]*/bin/|(?<![\w./$:{=-]))"
    r"tpm-mtls[ \t]+(?!(?:that|another|it|tpm-mtls)\b)(?=[a-z-])"
)
_NAMING = re.compile(r"\s--?\w[\w-]*[ \t]+$")
_END = re.compile(r"[;)`\n]|,(?=\s)|\s(?:[|&<>#]|&&|\|\||\d?>|--)(?=\s|$)|\\n")
_CODE = re.compile(
    r"^(?P<fence>```+)\w*\n.*?^(?P=fence)$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)", re.DOTALL | re.MULTILINE
)
_SUBSTITUTED = re.compile(r"\$\([^()]*\)")
_WORD = re.compile(r"[a-z][a-z0-9-]*")
_OPTION = re.compile(r"(--[a-z][a-z0-9-]*|-[a-zA-Z])(=.*)?")


@dataclass
class Node:
    """A command: its options, and the commands below it."""

    options: set[str] = field(default_factory=set)
    commands: dict[str, Node] = field(default_factory=dict)

    def all_options(self) -> set[str]:
        """Its own options, and those of all below."""
        return self.options.union(*(each.all_options() for each in self.commands.values()))


@cache
def command_line() -> Node:
    """The command line as it is installed."""
    return _node(main, click.Context(main, info_name="tpm-mtls", **main.context_settings))


def _node(command: click.Command, context: click.Context) -> Node:
    node = Node({name for each in command.get_params(context) for name in (*each.opts, *each.secondary_opts)})
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            node.commands[name] = _node(child, click.Context(child, info_name=name, parent=context))
    return node


def unknown_commands(text: str) -> list[str]:
    """What ``text`` calls ``tpm-mtls`` with that does not exist, each with the words before it."""
    joined = re.sub(r"\\\n\s*", " ", text)
    # after an option it is the user or the group tpm-mtls
    calls = [found.end() for found in _CALLED.finditer(joined) if not _NAMING.search(joined[: found.start()][-40:])]
    return [wrong for end in calls for wrong in _unknown(_words(joined[end:]))]


def _words(rest: str) -> list[str]:
    rest = _SUBSTITUTED.sub("…", rest)
    end = _END.search(rest)
    words = [word.strip("\"'()[],.:") for word in (rest[: end.start()] if end else rest).split()]
    return [word for word in words if word]


def _unknown(words: list[str]) -> Iterator[str]:
    """Alternatives are written ``get|post``; the options must be some of theirs."""
    nodes = [command_line()]
    options = set(command_line().options)
    below = True
    for number, word in enumerate(words):
        said = " ".join(["tpm-mtls", *words[: number + 1]])
        if word.startswith("-"):
            for each in word.split("|"):
                option = _OPTION.fullmatch(each)
                if option and option[1] not in options:
                    yield said
        elif below and any(node.commands for node in nodes):
            names = word.split("|")
            if not all(_WORD.fullmatch(name) for name in names):
                return  # a placeholder
            found = [node.commands[name] for node in nodes for name in names if name in node.commands]
            if len(found) < len(names):
                yield said
                return
            nodes = found
            options = options.union(*(node.options for node in nodes))
            below = any(node.commands for node in nodes)


def code_of(markdown: str) -> str:
    """The code of a page: its blocks and its words in backticks, apart."""
    return "\n".join(found[0].strip("`") for found in _CODE.finditer(markdown))


def bare_options(markdown: str) -> set[str]:
    """The options that stand alone in backticks, not after a command, and in none of the page's blocks either."""
    code = list(_CODE.finditer(markdown))
    spans = [found[0].strip("`") for found in code if found["ticks"]]
    words = [span.split()[0] for span in spans if span.startswith("--") and span.strip("-")]
    named = {option[1] for word in words for each in word.split("|") if (option := _OPTION.fullmatch(each))}
    blocks = "\n".join(found[0] for found in code if found["fence"])
    return {option for option in named if not re.search(rf"(?<![\w-]){option}(?![\w-])", blocks)}


def hints(source: str) -> Iterator[str]:
    """The advice in a Python source: what is inserted into it is a placeholder."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword):
            name = node.arg or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            name = ast.unparse(node).partition("=")[0]
        else:
            continue
        if "hint" in name.lower() and node.value is not None:
            yield _text(node.value)


def _text(value: ast.expr) -> str:
    parts = [each for each in ast.walk(value) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if isinstance(value, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in value.values)
    return "\n".join(str(each.value) for each in parts)
