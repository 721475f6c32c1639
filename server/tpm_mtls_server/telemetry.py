"""What devices send: read strictly, kept in a database (SQLAlchemy Core: SQLite by default, PostgreSQL by URL)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy
from sqlalchemy import Column, DateTime, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from tpm_mtls.errors import StorageError, StorageFullError, UsageError
from tpm_mtls.files import make_folder, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

MESSAGE_LIMIT = 64 * 1024
"""Bytes of one message."""

KEPT_PER_DEVICE = 1000
"""Messages kept per device, the newest: 64 MB at most, so that one device cannot fill the disk."""

BUSY_TIMEOUT = 5
"""Seconds to wait for another process that writes to the same SQLite file."""

_METADATA = MetaData()
_TELEMETRY = Table(
    "telemetry",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("device", String(253), nullable=False),
    Column("received", DateTime(timezone=True), nullable=False),
    Column("message", Text, nullable=False),
    Index("telemetry_by_device", "device", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, even after the newest row was deleted
)


def read_message(body: bytes) -> str:
    """The JSON object (RFC 8259) in ``body`` as compact JSON text; of a name that occurs twice the last value counts.

    Raises:
        ValueError: it is no JSON object, nested too deeply, or has a number that JSON readers do not agree on.
    """
    try:
        return msgspec.json.encode(msgspec.json.decode(body, type=dict[str, Any])).decode()
    except msgspec.ValidationError as error:
        raise ValueError("not a JSON object") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError("not JSON") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@dataclass(frozen=True)
class Message:
    """One stored message.

    Attributes:
        number: its id.
        device: who sent it.
        received: when it came, in UTC.
        text: the JSON object.
    """

    number: int
    device: str
    received: datetime
    text: str


class TelemetryStore:
    """The messages' database. Its calls block and may come from any thread."""

    def __init__(self, url: str, *, kept_per_device: int = KEPT_PER_DEVICE) -> None:
        """Opens the database at ``url`` and makes the table when it is not there.

        Raises:
            UsageError: the URL is wrong, has a password in it, or its driver is not installed.
            StorageError: the database cannot be opened or written to.
        """
        self._url = _check_url(url)
        self._kept = kept_per_device
        if self._url.get_backend_name() == "sqlite":
            _make_private(self._url.database)
        with self._errors("open"):
            self._engine = _engine(self._url)
            _METADATA.create_all(self._engine)

    def add(self, device: str, text: str, *, received: datetime) -> int:
        """Stores the JSON ``text`` of ``device`` durably and returns its id; the device's oldest messages make room.

        Raises:
            StorageError: it cannot be written; then nothing was.
        """
        with self._errors("write"), self._engine.begin() as connection:
            row = {"device": device, "received": received, "message": text}
            number = connection.execute(_TELEMETRY.insert().values(row).returning(_TELEMETRY.c.id)).scalar_one()
            mine = _TELEMETRY.c.device == device
            newest_first = sqlalchemy.select(_TELEMETRY.c.id).where(mine).order_by(_TELEMETRY.c.id.desc())
            surplus = connection.execute(newest_first.offset(self._kept).limit(1)).scalar_one_or_none()
            if surplus is not None:
                connection.execute(_TELEMETRY.delete().where(mine, _TELEMETRY.c.id <= surplus))
        return int(number)

    def messages(self, device: str) -> list[Message]:
        """What is stored of ``device``, oldest first.

        Raises:
            StorageError: it cannot be read.
        """
        query = _TELEMETRY.select().where(_TELEMETRY.c.device == device).order_by(_TELEMETRY.c.id)
        with self._errors("read"), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        # SQLite gives the time back without its zone
        return [Message(row.id, row.device, row.received.replace(tzinfo=UTC), row.message) for row in rows]

    def check(self) -> None:
        """Asks the database for a sign of life.

        Raises:
            StorageError: it gives none.
        """
        with self._errors("read"), self._engine.connect() as connection:
            connection.execute(sqlalchemy.select(_TELEMETRY.c.id).limit(1)).all()

    def close(self) -> None:
        """Closes all connections to the database."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        name = self._url.database or self._url.get_backend_name()
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
            raise kind(f"cannot {doing} the database {name}: {reason}", hint=hint, path=str(name)) from error


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
    with storage_errors(path, "write"):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _engine(url: sqlalchemy.URL) -> sqlalchemy.Engine:
    if url.get_backend_name() != "sqlite":
        return sqlalchemy.create_engine(url, pool_pre_ping=True)
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT})

    @sqlalchemy.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:  # noqa: ANN401 - the driver's own types
        connection.execute("PRAGMA journal_mode = WAL")  # readers do not stop the writer

    return engine
