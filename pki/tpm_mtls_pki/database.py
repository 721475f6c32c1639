"""The CA's store: SQLAlchemy Core over SQLite, or PostgreSQL by URL."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import exc

from tpm_mtls.errors import StateError, StorageError, StorageFullError, UsageError
from tpm_mtls.sqlite import line_up_writers, reader
from tpm_mtls_pki import schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import URL, Connection

_LOCK = schema.store.select().with_for_update()
_BUSY_TIMEOUT = 10.0  # seconds that a process waits for another one's transaction; each takes milliseconds


def database_url(text: str) -> URL:
    """The database that ``text`` names, checked.

    Raises:
        UsageError: no SQLAlchemy URL, or one with a password: whoever reads the process list would have it.
    """
    try:
        url = sqlalchemy.make_url(text)
    except exc.ArgumentError as error:
        raise UsageError("not a database URL", hint="example: postgresql://pki@/pki?host=/run/postgresql") from error
    if url.password is not None:
        raise UsageError(
            "a database URL with a password is not kept", hint="use ~/.pgpass, PGPASSFILE or peer authentication"
        )
    return url


def sqlite_url(path: Path) -> URL:
    """The SQLite database in the file ``path``."""
    return sqlalchemy.URL.create("sqlite", database=str(path))


class Database:
    """An open store. Threads and processes may use it at the same time; writers wait in a line.

    Errors of the database come out as `StorageError`.
    """

    def __init__(self, url: URL) -> None:
        self._name = url.render_as_string(hide_password=True)
        self._engine = _engine(url, self._name)
        self._reader = reader(self._engine)
        self._line = threading.Lock()

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def create(self, authority: str) -> None:
        """Makes the tables for the CA whose issuing certificate has the SHA-256 ``authority``.

        Raises:
            StateError: there is a store already.
            StorageError: the database refuses.
        """
        with self._errors(), self._engine.begin() as connection:
            if sqlalchemy.inspect(connection).has_table(schema.store.name):
                raise StateError(f"{self._name} holds a CA's store already", hint="name another database")
            schema.metadata.create_all(connection)
            connection.execute(schema.store.insert().values(id=1, version=schema.VERSION, authority=authority))

    def check(self, authority: str) -> None:
        """Checks that this is the store of the CA ``authority`` (as in `create`), in the version that we know.

        Raises:
            StateError: it is another one's, of another version, or there is none.
            StorageError: the database does not answer.
        """
        with self.reading() as connection:
            exists = sqlalchemy.inspect(connection).has_table(schema.store.name)
            row = connection.execute(schema.store.select()).one_or_none() if exists else None
        if row is None:
            raise StateError(f"{self._name} holds no CA's store", hint="restore it from a backup")
        if row.version != schema.VERSION:
            raise StateError(
                f"the CA's store has version {row.version}, expected {schema.VERSION}",
                hint="use the tpm-mtls that made it",
            )
        if row.authority != authority:
            raise StateError(f"{self._name} is another CA's store", hint="restore the right one from a backup")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the store."""
        with self._errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside; all of it happens or, after an exception, nothing."""
        # threads of one process wait here, and are woken; at the database they would look again after a while
        with self._line, self._errors(), self._engine.begin() as connection:
            connection.execute(_LOCK)
            yield connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).lower().splitlines()[0]
            full = "is full" in reason
            kind = StorageFullError if full else StorageError
            hint = "make room on that file system" if full else "is the database there, and may this user write it?"
            raise kind(f"cannot use the CA's store {self._name}: {reason}", hint=hint, path=self._name) from error


def _engine(url: URL, name: str) -> sqlalchemy.Engine:
    sqlite = url.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_TIMEOUT}} if sqlite else {}
    try:
        engine = sqlalchemy.create_engine(url, **options)
    except (exc.ArgumentError, ImportError) as error:
        raise UsageError(
            f"cannot use the database {name}", hint="install SQLAlchemy's driver for it, for example psycopg"
        ) from error
    return line_up_writers(engine) if sqlite else engine
