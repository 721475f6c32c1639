"""The table of ``keygen list``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls_keygen.describe import KeyDescription

_PIPE_WIDTH = 160  # columns where no terminal says how many there are: no line is wrapped


def print_objects(objects: Sequence[KeyDescription]) -> None:
    """Prints one line for each object to stdout: handle, role, algorithm, parent, attributes."""
    console = Console()
    if not objects:
        console.print("nothing is persistent in this TPM")
        return
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("handle", "role", "algorithm", "parent"):
        table.add_column(title, no_wrap=True)
    table.add_column("attributes")
    for each in objects:
        handle = each.key.removeprefix("handle:")
        role = f"{each.role}, with a policy" if each.role == "TLS key" and each.policy else each.role
        table.add_row(handle, role, each.algorithm, each.parent or "-", " ".join(each.attributes))
    console.print(table)
