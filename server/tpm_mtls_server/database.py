"""The server's database: SQLAlchemy Core over SQLite, or PostgreSQL by URL.

It holds the telemetry and the registry of devices. Several servers and commands may use it at the same time.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from tpm_mtls.errors import StorageError, StorageFullError, UsageError
from tpm_mtls.files import make_file, make_folder
from tpm_mtls.sqlite import line_up_writers, reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

BUSY_TIMEOUT: Final = 5
"""Seconds to wait for another process that writes to the same SQLite file."""

_ADVISORY_LOCK: Final = 0x74706D6D746C73
"""The number that writers of one PostgreSQL database agree on: "tpmmtls". It is let go at the transaction's end."""


class Database:
    """An open database. Its calls block and may come from any thread; writers wait in a line."""

    def __init__(self, url: str) -> None:
        """Opens the database at ``url``; no table is made.

        Raises:
            UsageError: the URL is wrong, has a password in it, or its driver is not installed.
            StorageError: the database cannot be opened.
        """
        self._url = _check_url(url)
        if self._url.get_backend_name() == "sqlite":
            _make_private(self._url.database)
        with self.errors("open"):
            self._engine = _engine(self._url)
            self._engine.connect().close()
        self._reader = reader(self._engine)
        self._line = threading.Lock()

    @property
    def name(self) -> str:
        """The file, or the database's name, for people."""
        return self._url.database or self._url.get_backend_name()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state.

        Raises:
            StorageError: the database does not answer.
        """
        with self.errors("read"), self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, *, alone: bool = True) -> Iterator[Connection]:
        """A transaction of which all happens or, after an exception, nothing.

        No other writer that is ``alone`` runs beside; on SQLite, no other at all.

        Raises:
            StorageError: it cannot be written; then nothing was.
        """
        # threads of one process wait here, and are woken; at the database they would look again after a while
        with self._line, self.errors("write"), self._engine.begin() as connection:
            if alone and connection.dialect.name == "postgresql":
                connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            yield connection

    def check(self) -> None:
        """Asks the database for a sign of life.

        Raises:
            StorageError: it gives none.
        """
        with self.reading() as connection:
            sqlalchemy.inspect(connection).get_table_names()

    def close(self) -> None:
        """Closes all connections to the database."""
        self._engine.dispose()

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """What the database refuses comes out as `StorageError`, a missing driver as `UsageError`."""
        try:
            yield
        except (ImportError, NoSuchModuleError) as error:
            raise UsageError(
                f"no driver for {self._url.drivername} is installed", hint="install it, or use sqlite:///PATH"
            ) from error
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0].lower()
            kind = StorageFullError if "full" in reason else StorageError
            hint = "make room on that file system" if kind is StorageFullError else "is it there, writable, undamaged?"
            raise kind(f"cannot {doing} the database {self.name}: {reason}", hint=hint, path=self.name) from error


def _check_url(text: str) -> sqlalchemy.URL:
    try:
        url = sqlalchemy.make_url(text)
    except ArgumentError as error:
        raise UsageError(
            "that is no database URL", hint="for example sqlite:////var/lib/tpm-mtls-server/telemetry.db"
        ) from error
    if url.password:
        raise UsageError(
            "the database URL has a password in it, which every local user could read",
            hint="leave it out; PostgreSQL's library reads ~/.pgpass",
        )
    return url


def _make_private(database: str | None) -> None:
    """Makes the SQLite file before SQLite does, so that it is never readable by others (its journal inherits that)."""
    if database in {None, "", ":memory:"}:
        raise UsageError("telemetry is not kept in memory only", hint="give a file: sqlite:///PATH")
    path = Path(str(database))
    make_folder(path.parent)
    make_file(path)


def _engine(url: sqlalchemy.URL) -> sqlalchemy.Engine:
    if url.get_backend_name() != "sqlite":
        return sqlalchemy.create_engine(url, pool_pre_ping=True)
    return line_up_writers(sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT}))
