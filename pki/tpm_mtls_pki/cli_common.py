"""Options and output that the CA's commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.cli_options import answer
from tpm_mtls.tables import print_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

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


def print_table(
    name: str, rows: Sequence[Mapping[str, Any]], *, empty: str, wrap: Collection[str] = (), as_json: bool
) -> None:
    """Prints ``rows`` as JSON under ``name``; else as `tables.print_rows` does, with the keys as titles."""
    if as_json:
        answer({name: rows}, "", as_json=True)
        return
    titles = list(rows[0]) if rows else []
    print_rows(titles, [[_text(value) for value in row.values()] for row in rows], empty=empty, wrap=wrap)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return "-" if value is None else str(value)
