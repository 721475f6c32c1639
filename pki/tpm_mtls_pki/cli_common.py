"""Options and output that the CA's commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.cli_options import answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

_DEFAULT_FOLDER = "/var/lib/tpm-mtls-pki"


def ca_dir_option(function: F) -> F:
    """``--ca-dir``: the CA's folder; passes a path to the parameter ``ca_dir``."""
    return click.option(
        "--ca-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=_DEFAULT_FOLDER,
        show_default=True,
        metavar="DIR",
        help="The CA's folder.",
    )(function)


def passphrase_option(what: str, *, required: bool = True) -> Callable[[F], F]:
    """``--passphrase SOURCE``, for `tpm_mtls.authorization.read_secret`; ``prompt`` by default where required."""
    return click.option(
        "--passphrase",
        metavar="SOURCE",
        default="prompt" if required else None,
        show_default=required,
        help=f"Where {what} is: prompt, file:PATH or credential:NAME.",
    )


def print_table(name: str, rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Prints ``rows`` as a table on a terminal, with tabs between the fields otherwise, or as JSON under ``name``."""
    if as_json or not sys.stdout.isatty():
        lines = ["\t".join(_text(value) for value in row.values()) for row in rows]
        if lines or as_json:
            answer({name: rows}, "\n".join(lines), as_json=as_json)
        return
    from rich.console import Console  # noqa: PLC0415 - for a person only
    from rich.table import Table  # noqa: PLC0415 - for a person only

    table = Table(*rows[0].keys()) if rows else Table(name)
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console(highlight=False, markup=False).print(table)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return "-" if value is None else str(value)
