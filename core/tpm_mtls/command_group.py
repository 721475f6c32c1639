"""A group of commands whose help says of each in whole what it is for."""

from __future__ import annotations

import inspect
import re

import click


class CommandGroup(click.Group):
    """click's group ends a command's line with "..." at the terminal's width; this one goes on in the next line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands' names, each with the first sentence of its help."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, first_sentence(command.help)) for name, command in found if command and not command.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def first_sentence(text: str | None) -> str:
    """The beginning of a help text, up to its first full stop or semicolon; without that."""
    paragraph = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.;]) ", paragraph, maxsplit=1)[0].rstrip(".:;")
