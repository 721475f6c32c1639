"""Lists: as tables for a person, as lines with tabs for other programs. Nothing in them is ever cut off."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_NARROWEST: Final = 20
"""Cells that a column keeps whose values may be broken; narrower, nobody reads it."""


def print_rows(
    titles: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str,
    wrap: Collection[str] = (),
    fold: Collection[str] = (),
) -> None:
    """Prints ``rows``: on a terminal as a table or, where it is too narrow for one, a block of lines for each row.

    A hash, serial number or name that is broken or cut off can be neither compared nor copied: so columns keep their
    width, unless they are said to be text. Elsewhere each row is a line with tabs between the fields.

    Args:
        titles: those of the columns, which are all different.
        rows: a value for each of them; values may come from anywhere, and do no harm to a terminal.
        empty: what a person is told if there are no rows.
        wrap: titles of columns that may be narrower, broken between words.
        fold: titles of columns that may be broken anywhere.
    """
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(map(str, row)))
        return
    shown = [[plain(str(value)) for value in row] for row in rows]
    if not shown:
        click.echo(empty)
    elif not _print_table(titles, shown, wrap=wrap, fold=fold):
        click.echo("\n\n".join("\n".join(_block(titles, row)) for row in shown))


def plain(text: str) -> str:
    """``text`` without anything that a terminal would obey: it may come from a device."""
    return "".join(each if each.isprintable() else "?" for each in text)


def narrowed(natural: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
    """Widths that are ``room`` together at the most, the widest columns narrowed first; none if that cannot be.

    Args:
        natural: how wide each column would be.
        least: how narrow it may become.
        room: for all.
    """
    if sum(least) > room:
        return None
    widths = [min(width, room) for width in natural]
    while sum(widths) > room:
        widest = max((width, index) for index, width in enumerate(widths) if width > least[index])
        widths[widest[1]] -= 1
    return widths


def _print_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, wrap: Collection[str], fold: Collection[str]
) -> bool:
    """Whether the terminal is wide enough; if not, nothing is printed."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - for a person only
    from rich.cells import cell_len  # noqa: PLC0415 - the same
    from rich.console import Console  # noqa: PLC0415 - the same
    from rich.measure import Measurement  # noqa: PLC0415 - the same
    from rich.table import Table  # noqa: PLC0415 - the same

    console = Console(highlight=False, markup=False)
    table = Table(*titles, box=SIMPLE_HEAD, pad_edge=False)
    natural, least = [], []
    for title, values in zip(titles, zip(*rows, strict=True), strict=True):
        cells = [title, *values]
        width = max(map(cell_len, cells))
        word = max(cell_len(each) for cell in cells for each in cell.split(" ")) if title not in fold else 0
        natural.append(width)
        least.append(max(word, min(width, _NARROWEST)) if title in {*wrap, *fold} else width)
    for column, width in zip(table.columns, natural, strict=True):
        column.width, column.overflow = width, "fold"
    between = Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum - sum(natural)
    widths = narrowed(natural, least, console.width - between)
    if widths is None:
        return False
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return True


def _block(titles: Sequence[str], row: Sequence[str]) -> Iterator[str]:
    """The terminal breaks what is too long for it: copied, it is whole."""
    width = max(map(len, titles)) + 1
    for title, value in zip(titles, row, strict=True):
        yield f"{f'{title}:':<{width}} {value}"
