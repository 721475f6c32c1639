"""A group of commands, as all groups of the command line are."""

from __future__ import annotations

import inspect
import re

import click


class CommandGroup(click.Group):
    """click's group, but for three things that differ between its versions or leave the user without the answer.

    1. Its help says of each command in whole what it is for, where click's ends a line with "...".
    2. Called without a command it shows that help, on stderr, and ends with 2: that is no error to be explained.
    3. For a command that is misspelt it names the ones that may be meant, also of those that are imported when named.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click; shows the help where there is nothing to parse."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True, color=ctx.color)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; raises `click.UsageError` for a command that does not exist."""
        name, known = args[0], self.list_commands(ctx)
        if name in known or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches  # noqa: PLC0415 - only an error pays for it

        near = " or ".join(repr(each) for each in get_close_matches(name, known))
        raise click.UsageError(f"No such command {name!r}" + (f": did you mean {near}?" if near else ""), ctx)

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
