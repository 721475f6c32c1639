"""Options that the server's commands share, and what they do alike."""

from __future__ import annotations

import contextlib
import os
import pwd
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tpm_mtls.cli_options import answer
from tpm_mtls.errors import StateError
from tpm_mtls.tables import plain, print_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from tpm_mtls_server.registry import Registry

F = TypeVar("F", bound="Callable[..., Any]")

DEFAULT_DATABASE: Final = "sqlite:////var/lib/tpm-mtls-server/telemetry.db"


def database_option(function: F) -> F:
    """``--database``: the server's database; passes a URL to the parameter ``database``."""
    return click.option(
        "--database", metavar="URL", default=DEFAULT_DATABASE, show_default=True, help="The server's database."
    )(function)


def by_option(function: F) -> F:
    """``--by``: who decides; passes a name to the parameter ``by``."""
    return click.option(
        "--by",
        default=lambda: local_user(os.environ, uid=os.getuid(), effective=os.geteuid()),
        metavar="NAME",
        show_default="local: and your login name",
        help="Who decides, for the audit log.",
    )(function)


@contextlib.contextmanager
def open_registry(database: str, *, make: bool = False) -> Iterator[Registry]:
    """The registry in ``database``, as long as the block lasts; with ``make`` it is made if it is not there.

    Raises:
        UsageError: the URL is wrong.
        StateError: it is not there, or of another version.
        StorageError: it cannot be opened.
    """
    import sqlalchemy  # noqa: PLC0415 - `server --help` stays quick

    from tpm_mtls_server.registry import Registry  # noqa: PLC0415 - the same

    if not make and database.startswith("sqlite:"):
        path = sqlalchemy.make_url(database).database
        if path and not Path(path).exists():
            raise StateError(
                f"there is no database {path}", hint="give the one of server run: --database sqlite:///PATH"
            )
    with Registry.open(database) as registry:
        yield registry


def print_list(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    empty: str,
    wrap: Collection[str] = (),
    as_json: bool,
) -> None:
    """Prints ``rows`` as JSON under ``name``; else those ``columns`` (title by key) as `tables.print_rows` does."""
    if as_json:
        answer({name: rows}, "", as_json=True)
        return
    values = [["-" if row[key] is None else row[key] for key in columns] for row in rows]
    print_rows(list(columns.values()), values, empty=empty, wrap=wrap)


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def local_user(environment: Mapping[str, str], *, uid: int, effective: int) -> str:
    """Who is logged in: ``local:NAME``; under sudo, who called it.

    No proof of anything: whoever can write the database can write any name into it.
    """
    name = environment.get("SUDO_USER") if effective == 0 else None
    if name is None:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = str(uid)
    return f"local:{plain(name)[:100]}"
