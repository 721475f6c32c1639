"""Bootstrap tokens: 256 random bits that let one device enroll one key, once. The store keeps their digests only."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy

from tpm_mtls.errors import StateError
from tpm_mtls_pki import audit
from tpm_mtls_pki.clock import from_seconds, seconds
from tpm_mtls_pki.schema import select_by, tokens

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from sqlalchemy.engine import Connection, Row

_TOKEN_BYTES = 32
_BY_DIGEST = select_by(tokens.c.digest)


@dataclass(frozen=True)
class Token:
    """What the store knows of a token.

    Attributes:
        id: by which the administrator names it.
        device: the device that it enrolls.
        created_at: when it was made.
        expires_at: from then on it is refused.
        revoked_at: when it was revoked, none if it was not.
        used_at: when a certificate was issued for it, none if none was.
        key_digest: for which key (SHA-256 of the SPKI, hex).
        serial: that certificate's serial number, hex.
    """

    id: int
    device: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    used_at: datetime | None
    key_digest: str | None
    serial: str | None

    def state(self, now: datetime) -> str:
        """``revoked``, ``used``, ``expired`` or ``open``."""
        if self.revoked_at is not None:
            return "revoked"
        if self.used_at is not None:
            return "used"
        return "expired" if now >= self.expires_at else "open"


def create(connection: Connection, device: str, *, ttl: timedelta, now: datetime) -> tuple[int, str]:
    """Makes a token for ``device``; returns its number and the token itself, which cannot be had again."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    values = {"created_at": seconds(now), "expires_at": seconds(now + ttl)}
    result = connection.execute(tokens.insert().values(digest=digest(token), device=device, **values))
    number = int(result.inserted_primary_key[0]) if result.inserted_primary_key else 0
    audit.append(connection, "token-created", device, {"token": number, "expires_at": now + ttl}, now=now)
    return number, token


def digest(token: str) -> str:
    """By which the store finds a token. A plain SHA-256: 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def find(connection: Connection, token: str) -> Token | None:
    """The token, whatever its state."""
    row = connection.execute(_BY_DIGEST, {"wanted": digest(token)}).one_or_none()
    return _token(row) if row else None


def listing(connection: Connection) -> list[Token]:
    """All tokens, oldest first."""
    return [_token(row) for row in connection.execute(tokens.select().order_by(tokens.c.id))]


def claim(connection: Connection, token: Token, *, key_digest: str, now: datetime) -> bool:
    """Uses the token up for the key; false if it was used or revoked meanwhile. One statement: nobody comes between."""
    result = connection.execute(
        tokens.update()
        .where(tokens.c.id == token.id, tokens.c.used_at.is_(None), tokens.c.revoked_at.is_(None))
        .values(used_at=seconds(now), key_digest=key_digest)
    )
    return result.rowcount == 1


def record(connection: Connection, token: Token, serial: str) -> None:
    """Notes the certificate that was issued for the claimed token."""
    connection.execute(tokens.update().where(tokens.c.id == token.id).values(serial=serial))


def revoke(connection: Connection, number: int, *, now: datetime) -> None:
    """Revokes a token that was not used.

    Raises:
        StateError: there is none of that number, or it is used or revoked already.
    """
    result = connection.execute(
        tokens.update()
        .where(tokens.c.id == number, tokens.c.used_at.is_(None), tokens.c.revoked_at.is_(None))
        .values(revoked_at=seconds(now))
    )
    if result.rowcount != 1:
        raise StateError(f"there is no unused token {number}", hint="see: tpm-mtls pki token list")
    device = connection.execute(sqlalchemy.select(tokens.c.device).where(tokens.c.id == number)).scalar_one()
    audit.append(connection, "token-revoked", device, {"token": number}, now=now)


def _token(row: Row[tuple[object, ...]]) -> Token:
    return Token(
        id=row.id,
        device=row.device,
        created_at=from_seconds(row.created_at),
        expires_at=from_seconds(row.expires_at),
        revoked_at=None if row.revoked_at is None else from_seconds(row.revoked_at),
        used_at=None if row.used_at is None else from_seconds(row.used_at),
        key_digest=row.key_digest,
        serial=row.serial,
    )
