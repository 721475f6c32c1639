"""The TPM makers' CAs that the administrator trusts to say which chip is genuine (check 1)."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.certificates import parse_certificates
from tpm_mtls.errors import CredentialError, PemError, StateError
from tpm_mtls.files import PEM_LIMIT
from tpm_mtls_pki import audit
from tpm_mtls_pki.clock import seconds
from tpm_mtls_pki.evidence.endorsement import EkTrust, is_authority, is_self_signed
from tpm_mtls_pki.schema import ek_roots

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

_SUBJECT_LENGTH: Final = 200
_AUDIT_SUBJECT = 64  # characters, as the table has it
_FINGERPRINT_DIGITS = 8  # the least by which one may name a certificate

_ALL = ek_roots.select().order_by(ek_roots.c.added_at, ek_roots.c.fingerprint)


@dataclass(frozen=True)
class EkRoot:
    """A TPM maker's CA.

    Attributes:
        fingerprint: SHA-256 of its certificate, hex.
        subject: its name (RFC 4514).
        is_root: whether it is a trust anchor (self-signed), or a CA below one.
        der: the certificate.
    """

    fingerprint: str
    subject: str
    is_root: bool
    der: bytes

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_der_x509_certificate(self.der)


def parse_file(data: bytes, *, name: str) -> tuple[x509.Certificate, ...]:
    """The certificates in ``data``: PEM, or one in DER as most TPM makers publish them.

    Raises:
        PemError: neither, or damaged.
    """
    if b"-----BEGIN" in data or len(data) > PEM_LIMIT:
        return parse_certificates(data, name=name)
    try:
        return (x509.load_der_x509_certificate(data),)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PemError(f"{name} holds no certificate", hint="PEM, or one certificate in DER") from error


def add(connection: Connection, certificates: Sequence[x509.Certificate], *, now: datetime) -> list[EkRoot]:
    """Trusts the self-signed ones of ``certificates`` as roots; the others only complete chains to such a root.

    One that is there already is left as it is. ``connection`` is in a transaction, so all of them or none.

    Raises:
        CredentialError: one of them is not a CA's.
    """
    added = [_describe(certificate) for certificate in certificates]
    known = {root.fingerprint for root in listing(connection)}
    for root in added:
        if root.fingerprint not in known:
            known.add(root.fingerprint)
            connection.execute(ek_roots.insert().values(**vars(root), added_at=seconds(now)))
            audit.append(connection, "ek-root-added", root.subject[:_AUDIT_SUBJECT], _detail(root), now=now)
    return added


def listing(connection: Connection) -> list[EkRoot]:
    """All of them, oldest first."""
    return [_root(row) for row in connection.execute(_ALL)]


def remove(connection: Connection, fingerprint: str, *, now: datetime) -> EkRoot:
    """Stops trusting the one whose fingerprint begins so (at least 8 digits); certificates issued stay valid.

    Raises:
        StateError: none, or more than one, begins so.
    """
    start = fingerprint.lower().replace(":", "")
    found = [root for root in listing(connection) if root.fingerprint.startswith(start)]
    if len(found) != 1 or len(start) < _FINGERPRINT_DIGITS:
        raise StateError(
            f"no single TPM maker's CA has a fingerprint that begins with {start[:64]!r}",
            hint=f"see: tpm-mtls pki ek-roots list; give at least {_FINGERPRINT_DIGITS} digits",
        )
    connection.execute(ek_roots.delete().where(ek_roots.c.fingerprint == found[0].fingerprint))
    audit.append(connection, "ek-root-removed", found[0].subject[:_AUDIT_SUBJECT], _detail(found[0]), now=now)
    return found[0]


def trust(connection: Connection) -> EkTrust:
    """What evidence is checked against."""
    return _trust(tuple((root.is_root, root.der) for root in listing(connection)))


@functools.lru_cache(maxsize=4)
def _trust(rows: tuple[tuple[bool, bytes], ...]) -> EkTrust:
    """Parsed once for every change of the list: an enrollment is not to parse a hundred certificates."""
    roots = tuple(x509.load_der_x509_certificate(der) for is_root, der in rows if is_root)
    intermediates = tuple(x509.load_der_x509_certificate(der) for is_root, der in rows if not is_root)
    return EkTrust(roots, intermediates)


def _describe(certificate: x509.Certificate) -> EkRoot:
    subject = certificate.subject.rfc4514_string()[:_SUBJECT_LENGTH]
    try:
        usable = is_authority(certificate)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise PemError(f"the certificate {subject} is damaged", hint="get it from the TPM's maker again") from error
    if not usable:
        raise CredentialError(
            f"{subject} is not a CA's certificate",
            hint="add the maker's root; a single chip goes on the allow-list: tpm-mtls pki allow add",
        )
    der = certificate.public_bytes(Encoding.DER)
    return EkRoot(hashlib.sha256(der).hexdigest(), subject, is_self_signed(certificate), der)


def _detail(root: EkRoot) -> dict[str, object]:
    return {"fingerprint": root.fingerprint, "subject": root.subject, "root": root.is_root}


def _root(row: Row[Any]) -> EkRoot:
    return EkRoot(row.fingerprint, row.subject, row.is_root, row.der)
