"""What devices send: read strictly, kept in the server's database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy
from sqlalchemy import Column, DateTime, Index, Integer, MetaData, String, Table, Text

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls_server.database import Database

MESSAGE_LIMIT = 64 * 1024
"""Bytes of one message."""

KEPT_PER_DEVICE = 1000
"""Messages kept per device, the newest: 64 MB at most, so that one device cannot fill the disk."""

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
    """The messages. Its calls block and may come from any thread."""

    def __init__(self, database: Database, *, kept_per_device: int = KEPT_PER_DEVICE) -> None:
        """Takes the messages in ``database``; makes the table when it is not there.

        Raises:
            StorageError: the database refuses.
        """
        self._database = database
        self._kept = kept_per_device
        with database.writing() as connection:
            _METADATA.create_all(connection)

    def add(self, device: str, text: str, *, received: datetime) -> int:
        """Stores the JSON ``text`` of ``device`` durably and returns its id; the device's oldest messages make room.

        Raises:
            StorageError: it cannot be written; then nothing was.
        """
        with self._database.writing(alone=False) as connection:
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
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        # SQLite gives the time back without its zone
        return [Message(row.id, row.device, row.received.replace(tzinfo=UTC), row.message) for row in rows]
