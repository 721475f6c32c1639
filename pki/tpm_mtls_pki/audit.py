"""The append-only audit log: each row carries the digest of the one before, so that a changed row shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy

from tpm_mtls.errors import StateError
from tpm_mtls_pki.clock import from_seconds, seconds
from tpm_mtls_pki.schema import audit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from sqlalchemy.engine import Connection

_BEGINNING = "0" * 64

_LAST = sqlalchemy.select(audit.c.id, audit.c.digest).order_by(audit.c.id.desc()).limit(1)
_INSERT = audit.insert()


@dataclass(frozen=True)
class Entry:
    """One row of the log.

    Attributes:
        id: counts from 1 without gaps.
        at: when.
        event: what happened, such as ``certificate-issued``.
        subject: to whom: a device or a server.
        detail: the facts.
        digest: SHA-256 over the row before and this one, hex.
    """

    id: int
    at: datetime
    event: str
    subject: str
    detail: Mapping[str, Any]
    digest: str


def append(connection: Connection, event: str, subject: str, detail: Mapping[str, Any], *, now: datetime) -> None:
    """Adds a row; ``connection`` is in a writing transaction. ``detail`` holds no secret."""
    last = connection.execute(_LAST).one_or_none()
    number, previous = (last.id + 1, last.digest) if last else (1, _BEGINNING)
    text = msgspec.json.encode(detail, order="sorted").decode()
    at = seconds(now)
    connection.execute(
        _INSERT,
        {
            "id": number,
            "at": at,
            "event": event,
            "subject": subject,
            "detail": text,
            "previous": previous,
            "digest": _digest(previous, number, at, event, subject, text),
        },
    )


def entries(connection: Connection, *events: str) -> Iterator[Entry]:
    """The rows of these ``events``, all if none is given, oldest first; nothing is verified."""
    wanted = audit.select().where(audit.c.event.in_(events)) if events else audit.select()
    for row in connection.execute(wanted.order_by(audit.c.id)):
        detail = msgspec.json.decode(row.detail, type=dict[str, Any])
        yield Entry(row.id, from_seconds(row.at), row.event, row.subject, detail, row.digest)


def count(connection: Connection, event: str) -> int:
    """How many rows there are of this ``event``."""
    wanted = sqlalchemy.select(sqlalchemy.func.count()).where(audit.c.event == event)
    return connection.execute(wanted).scalar_one()


def verify(connection: Connection) -> tuple[int, str]:
    """Checks the log: rows count from 1 without gaps, each names its predecessor's digest, and its own is right.

    Not verified: that no row was cut off at the end. Keep the returned digest elsewhere to see that.

    Returns:
        How many rows there are, and the last one's digest.

    Raises:
        StateError: a row was changed, added or removed.
    """
    count, previous = 0, _BEGINNING
    for row in connection.execute(audit.select().order_by(audit.c.id)):
        count += 1
        wanted = _digest(previous, row.id, row.at, row.event, row.subject, row.detail)
        if (row.id, row.previous, row.digest) != (count, previous, wanted):
            raise StateError(
                f"the audit log was changed at or before row {row.id}", hint="compare it with a backup of the store"
            )
        previous = row.digest
    return count, previous


def _digest(previous: str, number: int, at: int, event: str, subject: str, detail: str) -> str:
    # a JSON array: unambiguous whatever the texts hold
    return hashlib.sha256(msgspec.json.encode([previous, number, at, event, subject, detail])).hexdigest()
