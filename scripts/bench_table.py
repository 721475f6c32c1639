"""What the bench found, as text for a terminal and as Markdown for docs/performance.md."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BEGIN = "<!-- made by ./run bench --write: begin -->"
END = "<!-- made by ./run bench --write: end -->"


@dataclass(frozen=True)
class Table:
    """A table; numbers come as text.

    Attributes:
        title: one line.
        note: what was measured and how, some sentences; empty for none.
        head: the columns' titles.
        rows: as many texts in each.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_text(self) -> str:
        """For a terminal."""
        widths = [max(len(row[column]) for row in [self.head, *self.rows]) for column in range(len(self.head))]
        lines = [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [self.head, *self.rows]
        ]
        return "\n".join(["", self.title, *lines])

    def as_markdown(self) -> str:
        """For a document."""
        ruler = "|" + "---|" * len(self.head)
        rows = ["| " + " | ".join(row) + " |" for row in [self.head, *self.rows]]
        return "\n".join([f"### {self.title}", "", *([self.note, ""] if self.note else []), rows[0], ruler, *rows[1:]])


def write_block(path: Path, introduction: str, tables: Iterable[Table]) -> None:
    """Puts the tables between the marks `BEGIN` and `END` of the document ``path``.

    Raises:
        ValueError: it has no such marks.
        StorageError: it cannot be written.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no line {BEGIN} with {END} after it")
    content = "\n\n".join(itertools.chain([introduction], (table.as_markdown() for table in tables)))
    write_atomic(path, f"{before}{begin}\n\n{content}\n\n{end}{after}".encode())
