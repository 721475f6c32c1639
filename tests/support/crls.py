"""The lists of revoked certificates of a `TestCa`, in one file that a test replaces."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from support.certificates import now
from tpm_mtls.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

    from support.certificates import TestCa
    from tpm_mtls.identity import Identity

WEEK = dt.timedelta(days=7)


class Lists:
    """Both lists of ``ca``; each call of `publish` gives them a higher number."""

    def __init__(self, ca: TestCa) -> None:
        self.ca = ca
        self.number = 0
        self.path: Path = ca.folder / "crls.pem"

    def publish(self, *revoked: Identity, issuing: bool = False, encoding: Encoding = Encoding.PEM) -> Path:
        """Replaces the file by lists that name the certificates of ``revoked``, or that of the ``issuing`` CA."""
        self.number += 1
        lists = [self.issuing(*revoked), self.root(self.ca.issuing if issuing else None)]
        write_atomic(self.path, b"".join(crl.public_bytes(encoding) for crl in lists))
        return self.path

    def issuing(
        self,
        *revoked: Identity,
        begins: dt.datetime | None = None,
        ends: dt.datetime | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.CertificateRevocationList:
        """The issuing CA's list."""
        serials = [leaf(identity).serial_number for identity in revoked]
        return self._sign(self.ca.issuing, self.ca._key, serials, begins, ends, extensions)

    def root(
        self,
        revoked: x509.Certificate | None = None,
        *,
        begins: dt.datetime | None = None,
        ends: dt.datetime | None = None,
    ) -> x509.CertificateRevocationList:
        """The root's list."""
        serials = [] if revoked is None else [revoked.serial_number]
        return self._sign(self.ca.root, self.ca._root_key, serials, begins, ends, ())

    def write(self, *lists: x509.CertificateRevocationList) -> Path:
        """Replaces the file by these, in PEM form."""
        write_atomic(self.path, b"".join(crl.public_bytes(Encoding.PEM) for crl in lists))
        return self.path

    def _sign(
        self,
        issuer: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        serials: Sequence[int],
        begins: dt.datetime | None,
        ends: dt.datetime | None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
    ) -> x509.CertificateRevocationList:
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
        builder = builder.last_update(begins or now() - dt.timedelta(hours=1)).next_update(ends or now() + WEEK)
        builder = builder.add_extension(x509.CRLNumber(self.number), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        builder = builder.add_extension(authority, critical=False)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now()).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key, hashes.SHA256())


def leaf(identity: Identity) -> x509.Certificate:
    """The identity's own certificate."""
    return x509.load_pem_x509_certificate(identity.certificate.read_bytes())
