"""The store's certificates: every one that was issued, and whether it is revoked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.errors import StateError, UsageError
from tpm_mtls_pki import audit
from tpm_mtls_pki.clock import from_seconds, seconds
from tpm_mtls_pki.schema import certificates, select_by

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row
    from sqlalchemy.sql import ColumnElement, Select

KEY_COMPROMISE: Final = "keyCompromise"
SUPERSEDED: Final = "superseded"

REASONS: Final = {
    "unspecified": x509.ReasonFlags.unspecified,
    KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    "affiliationChanged": x509.ReasonFlags.affiliation_changed,
    SUPERSEDED: x509.ReasonFlags.superseded,
    "cessationOfOperation": x509.ReasonFlags.cessation_of_operation,
    "privilegeWithdrawn": x509.ReasonFlags.privilege_withdrawn,
}
"""Reasons for a revocation that lasts: RFC 5280, 5.3.1, without cACompromise and those for holds and deltas."""

_ORDER = (certificates.c.issued_at, certificates.c.serial)
_BY_SERIAL = select_by(certificates.c.serial)
_BY_SUBJECT = select_by(certificates.c.subject).order_by(*_ORDER)
_BY_KEY = select_by(certificates.c.key_digest).order_by(*_ORDER)
_INSERT = certificates.insert()


@dataclass(frozen=True)
class Record:
    """A certificate that was issued.

    Attributes:
        serial: serial number, 40 hex digits.
        profile: name of its profile.
        subject: the device, or the server's first name.
        key_digest: SHA-256 of its SubjectPublicKeyInfo, hex.
        not_before: begin of its validity.
        not_after: its last second.
        grounds: why it was issued (``token 3``, ``certificate 0a…``, ``administrator``).
        der: the certificate.
        revoked_at: when it was revoked, none if it was not.
        reason: why, one of `REASONS`.
    """

    serial: str
    profile: str
    subject: str
    key_digest: str
    not_before: datetime
    not_after: datetime
    grounds: str
    der: bytes
    revoked_at: datetime | None
    reason: str | None

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_der_x509_certificate(self.der)

    def state(self, now: datetime) -> str:
        """``revoked``, ``expired`` or ``valid``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if now > self.not_after else "valid"


def serial_text(certificate: x509.Certificate) -> str:
    """The serial number as the store writes it: 40 hex digits."""
    return f"{certificate.serial_number:040x}"


def parse_serial(text: str) -> str:
    """A serial number as people paste it (hex, colons or ``0x`` allowed) in the store's form.

    Raises:
        UsageError: it is none.
    """
    digits = text.lower().removeprefix("0x").replace(":", "")
    try:
        number = int(digits, 16)
    except ValueError as error:
        raise UsageError(f"not a serial number: {text[:60]!r}", hint="give it in hexadecimal") from error
    if not 0 < number < 1 << 160:
        raise UsageError(f"not a serial number: {text[:60]!r}", hint="it has at most 20 bytes")
    return f"{number:040x}"


def add(
    connection: Connection,
    certificate: x509.Certificate,
    *,
    profile: str,
    subject: str,
    key_digest: str,
    grounds: str,
    now: datetime,
) -> str:
    """Stores a new certificate and returns its serial number."""
    serial = serial_text(certificate)
    connection.execute(
        _INSERT,
        {
            "serial": serial,
            "profile": profile,
            "subject": subject,
            "key_digest": key_digest,
            "not_before": seconds(certificate.not_valid_before_utc),
            "not_after": seconds(certificate.not_valid_after_utc),
            "issued_at": seconds(now),
            "grounds": grounds,
            "der": certificate.public_bytes(Encoding.DER),
        },
    )
    return serial


def find(connection: Connection, serial: str) -> Record | None:
    """The certificate with that serial number (in the store's form)."""
    found = _fetch(connection, _BY_SERIAL, serial)
    return found[0] if found else None


def of_subject(connection: Connection, subject: str) -> list[Record]:
    """All certificates of a device or server, oldest first."""
    return _fetch(connection, _BY_SUBJECT, subject)


def of_key(connection: Connection, key_digest: str) -> list[Record]:
    """All certificates for a key, oldest first."""
    return _fetch(connection, _BY_KEY, key_digest)


def listing(connection: Connection) -> list[Record]:
    """All certificates, oldest first."""
    return _select(connection, sqlalchemy.true())


def revoked_since(connection: Connection, earliest_end: datetime) -> list[Record]:
    """The revoked certificates whose validity ends (or ended) after ``earliest_end``."""
    return _select(
        connection, certificates.c.revoked_at.is_not(None) & (certificates.c.not_after > seconds(earliest_end))
    )


def count_revoked(connection: Connection) -> int:
    """How many certificates were ever revoked; it only grows."""
    query = sqlalchemy.select(sqlalchemy.func.count()).where(certificates.c.revoked_at.is_not(None))
    return connection.execute(query).scalar_one()


def revoke(connection: Connection, record: Record, *, reason: str, now: datetime) -> None:
    """Revokes a certificate for good; ``reason`` is one of `REASONS`.

    Raises:
        StateError: it is revoked already.
    """
    result = connection.execute(
        certificates.update()
        .where(certificates.c.serial == record.serial, certificates.c.revoked_at.is_(None))
        .values(revoked_at=seconds(now), reason=reason)
    )
    if result.rowcount != 1:
        raise StateError(f"certificate {record.serial} is revoked already", hint="see: tpm-mtls pki list")
    audit.append(
        connection, "certificate-revoked", record.subject, {"serial": record.serial, "reason": reason}, now=now
    )


def _select(connection: Connection, condition: ColumnElement[bool]) -> list[Record]:
    return [_record(row) for row in connection.execute(certificates.select().where(condition).order_by(*_ORDER))]


def _fetch(connection: Connection, query: Select[Any], wanted: str) -> list[Record]:
    return [_record(row) for row in connection.execute(query, {"wanted": wanted})]


def _record(row: Row[tuple[object, ...]]) -> Record:
    return Record(
        serial=row.serial,
        profile=row.profile,
        subject=row.subject,
        key_digest=row.key_digest,
        not_before=from_seconds(row.not_before),
        not_after=from_seconds(row.not_after),
        grounds=row.grounds,
        der=row.der,
        revoked_at=None if row.revoked_at is None else from_seconds(row.revoked_at),
        reason=row.reason,
    )
