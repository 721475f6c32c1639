"""The option of all commands that have to do with the agent's socket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpm_mtls.secrets.protocol import DEFAULT_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def socket_option(*, variable: str | None = None) -> Callable[[F], F]:
    """``--socket``, a `Path`; the environment ``variable``, if any, takes the place of the default."""
    return click.option(
        "--socket",
        type=click.Path(path_type=Path, readable=False),
        default=DEFAULT_SOCKET,
        envvar=variable,
        show_default=True,
        show_envvar=True,
        metavar="PATH",
        help="The agent's socket.",
    )
