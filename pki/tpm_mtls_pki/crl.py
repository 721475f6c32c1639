"""Certificate revocation lists: v2 with CRLNumber and AKI (RFC 5280, 5), signed anew with each revocation.

A CRL is stored first and written to its file afterwards, so that a crash between the two is made good by the next
`publish`, and two processes never put an older one over a newer.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.files import storage_errors, write_atomic
from tpm_mtls_pki import audit, records
from tpm_mtls_pki.clock import from_seconds, seconds
from tpm_mtls_pki.profiles import BACKDATE, Issuer, hash_for
from tpm_mtls_pki.schema import crls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from tpm_mtls_pki.database import Database

ISSUING_LIFETIME: Final = timedelta(days=7)
ROOT_LIFETIME: Final = timedelta(days=365)
"""From thisUpdate to nextUpdate; the root's key comes out of its safe once a year."""

_KEEP = timedelta(days=30)
"""A revoked certificate stays listed this long after its end: at least one CRL after it (RFC 5280, 3.3)."""

Name = Literal["root", "issuing"]


@dataclass(frozen=True)
class StoredCrl:
    """The newest CRL of an issuer.

    Attributes:
        number: its CRLNumber.
        this_update: when it was made.
        next_update: when there will be another at the latest.
        revocations: how many certificates were ever revoked when it was made.
        der: the CRL.
    """

    number: int
    this_update: datetime
    next_update: datetime
    revocations: int
    der: bytes

    @property
    def crl(self) -> x509.CertificateRevocationList:
        """The CRL, parsed."""
        return x509.load_der_x509_crl(self.der)


def issue_crl(
    connection: Connection, name: Name, issuer: Issuer, *, lifetime: timedelta, now: datetime
) -> x509.CertificateRevocationList:
    """Signs and stores the next CRL of ``issuer``; ``connection`` is in a writing transaction."""
    last = newest(connection, name)
    number = last.number + 1 if last else 1
    issuing = name == "issuing"
    revoked = records.revoked_since(connection, now - _KEEP) if issuing else []
    crl = _build(issuer, revoked, number=number, lifetime=lifetime, now=now)
    connection.execute(crls.delete().where(crls.c.issuer == name))  # the newest is all that anybody needs
    connection.execute(
        crls.insert().values(
            issuer=name,
            number=number,
            this_update=seconds(now),
            next_update=seconds(now + lifetime),
            revocations=records.count_revoked(connection) if issuing else 0,
            der=crl.public_bytes(Encoding.DER),
        )
    )
    audit.append(connection, "crl-signed", name, {"number": number, "entries": len(revoked)}, now=now)
    return crl


def newest(connection: Connection, name: Name) -> StoredCrl | None:
    """The newest CRL of ``name``, none before the first."""
    query = crls.select().where(crls.c.issuer == name).order_by(crls.c.number.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return StoredCrl(row.number, from_seconds(row.this_update), from_seconds(row.next_update), row.revocations, row.der)


def is_due(connection: Connection, *, now: datetime) -> bool:
    """Whether the issuing CA's CRL lacks a revocation or is past half its life."""
    last = newest(connection, "issuing")
    if last is None or last.revocations != records.count_revoked(connection):
        return True
    return now >= last.this_update + (last.next_update - last.this_update) / 2


def publish(database: Database, name: Name, path: Path) -> StoredCrl | None:
    """Writes the newest CRL of ``name`` to the PEM file ``path``, and returns it.

    Raises:
        StorageError: it cannot be written.
    """
    with _locked(path.parent):
        with database.reading() as connection:
            last = newest(connection, name)
        if last is not None:
            pem = last.crl.public_bytes(Encoding.PEM)
            if not path.exists() or path.read_bytes() != pem:
                write_atomic(path, pem)
    return last


def _build(
    issuer: Issuer, revoked: list[records.Record], *, number: int, lifetime: timedelta, now: datetime
) -> x509.CertificateRevocationList:
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    builder = builder.last_update(now - BACKDATE).next_update(now + lifetime)
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    builder = builder.add_extension(authority, critical=False)
    for record in revoked:
        builder = builder.add_revoked_certificate(_entry(record))
    return builder.sign(issuer.key, hash_for(issuer.key))


def _entry(record: records.Record) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(int(record.serial, 16))
    builder = builder.revocation_date(record.revoked_at or record.not_before)
    if record.reason not in {None, "unspecified"}:  # RFC 5280, 5.3.1: left out rather than unspecified
        reason = records.REASONS[str(record.reason)]
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with storage_errors(folder, "lock"):  # the folder: a file that root makes here, the service could not open
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
