"""X.509 certificates, read strictly and checked at a given time.

Nothing here needs a TPM. Times are aware datetimes in UTC; public keys travel as DER SubjectPublicKeyInfo (SPKI).
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from tpm_mtls.device_identity import EKU_ATTESTATION_KEY
from tpm_mtls.errors import (
    CertificateExpiredError,
    CertificateMismatchError,
    CertificateNotYetValidError,
    CredentialError,
    CsrRefusedError,
    PemError,
)
from tpm_mtls.files import PEM_LIMIT, read_capped

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

CERTIFICATES_LIMIT = 16
"""Certificates in one PEM file; a chain has three."""

CSR_LIMIT = 16 * 1024
"""Bytes of a CSR; with an RSA-4096 key and a dozen names it is 2 KiB."""

UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for a certificate that it cannot parse, or a part of one; the last three are no
``ValueError``."""

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s+[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")


class Purpose(enum.Enum):
    """What a certificate is used for: its extended key usage (RFC 5280, 4.2.1.12)."""

    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    ATTESTATION = EKU_ATTESTATION_KEY

    def __str__(self) -> str:
        """Whom such a certificate is for."""
        return "attestation keys" if self is Purpose.ATTESTATION else f"TLS {self.name.lower()}s"


def load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates in the PEM file ``path``, in the file's order; at least one.

    Raises:
        StorageError: it cannot be read.
        PemError: as `parse_certificates`.
    """
    return parse_certificates(read_capped(path), name=str(path))


def parse_certificates(data: bytes, *, name: str) -> tuple[x509.Certificate, ...]:
    """The certificates in PEM ``data``, in its order; at least one. Text between the blocks is allowed.

    Nothing about them is verified. ``name`` says in the errors where the data is from.

    Raises:
        PemError: larger than `PEM_LIMIT`, none or more than `CERTIFICATES_LIMIT` of them, one of them damaged, or a
            block of another kind among them.
    """
    if len(data) > PEM_LIMIT:
        raise PemError(f"{name} is larger than {PEM_LIMIT} bytes", hint="this is not the file that was meant")
    for label in _LABEL.findall(data):
        if label != b"CERTIFICATE":
            raise PemError(f"{name} holds a {label.decode().lower()}", hint="a file of certificates only was expected")
    blocks = _BLOCK.findall(data)
    if len(blocks) != data.count(b"-----BEGIN"):
        raise PemError(f"{name} is cut off or damaged", hint="copy the file again")
    if not 1 <= len(blocks) <= CERTIFICATES_LIMIT:
        raise PemError(f"{name} holds {len(blocks) or 'no'} certificates", hint="expected one certificate or a chain")
    return tuple(_parse_block(block, name) for block in blocks)


def certificates_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """The certificates as PEM, in the given order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def parse_csr(data: bytes) -> x509.CertificateSigningRequest:
    """The CSR (PKCS #10, RFC 2986) in ``data``, DER or PEM.

    Its self-signature is *not* verified, and nothing is known about its names and extensions: they may not even parse.

    Raises:
        CsrRefusedError: it is larger than `CSR_LIMIT` or no CSR.
    """
    hint = "make one with: tpm-mtls keygen csr"
    if len(data) > CSR_LIMIT:
        raise CsrRefusedError(f"the certificate request is larger than {CSR_LIMIT} bytes", hint=hint)
    is_pem = b"-----BEGIN" in data
    try:
        return x509.load_pem_x509_csr(data) if is_pem else x509.load_der_x509_csr(data)
    except UNREADABLE as error:
        raise CsrRefusedError("that is no certificate request (PKCS #10)", hint=hint) from error


def spki(public_key: PublicKeyTypes) -> bytes:
    """The public key as DER SubjectPublicKeyInfo: the form in which two keys compare equal."""
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_matches(certificate: x509.Certificate, public_key: bytes) -> None:
    """Checks that ``certificate`` certifies ``public_key`` (DER SPKI) and no other.

    Not verified: the certificate's chain, dates and names (`check_chain`).

    Raises:
        CertificateMismatchError: it certifies another key.
    """
    if certificate_spki(certificate) != public_key:
        raise CertificateMismatchError(
            "the certificate belongs to another key", hint="use the certificate that was issued for this key"
        )


def certificate_spki(certificate: x509.Certificate) -> bytes:
    """The certificate's public key as DER SubjectPublicKeyInfo.

    Raises:
        PemError: it has a key that nobody can read.
    """
    try:
        return spki(certificate.public_key())
    except UNREADABLE as error:
        raise PemError("the certificate's public key cannot be read", hint="ask its CA for another one") from error


def find_certificate(certificates: Sequence[x509.Certificate], public_key: bytes) -> x509.Certificate:
    """The one of ``certificates`` that certifies ``public_key`` (DER SPKI); nothing else about it is verified.

    Raises:
        CertificateMismatchError: none does.
    """
    for certificate in certificates:
        if certificate_spki(certificate) == public_key:
            return certificate
    raise CertificateMismatchError(
        "no certificate is for this key", hint="the answer belongs to another request; enroll again"
    )


def check_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: datetime,
    purpose: Purpose,
) -> tuple[x509.Certificate, ...]:
    """Checks that ``leaf`` is a certificate for ``purpose`` that leads to one of ``anchors`` at the time ``now``.

    1. ``now`` lies within the leaf's validity (RFC 5280, 4.1.2.5); first, so that a wrong clock gets its own error.
    2. The same for every CA certificate of the chain, the anchor included.
    3. Names chain and signatures verify from the leaf to an anchor (RFC 5280, 6.1.3), with basicConstraints, path
       length, keyUsage and nameConstraints of each CA (6.1.4), and with algorithms that are still sound.
    4. The leaf's extendedKeyUsage has ``purpose``, and the leaf is no CA.

    Not verified: revocation, the leaf's name, and whether it matches a key (`check_matches`). The caller vouches for
    ``anchors``.

    Returns:
        The chain found, leaf first, anchor last.

    Raises:
        CertificateExpiredError: step 1 or 2.
        CertificateNotYetValidError: step 1 or 2.
        CredentialError: step 3 or 4.
    """
    check_dates(leaf, now=now, what="the certificate")  # 1
    for issuer in _issuers_by_name(leaf, [*intermediates, *anchors]):  # 2
        check_dates(issuer, now=now, what=f"the CA certificate {issuer.subject.rfc4514_string()}")
    builder = verification.PolicyBuilder().time(now)
    builder = builder.extension_policies(ca_policy=_ca_policy(purpose), ee_policy=_leaf_policy(purpose))
    try:
        builder = builder.store(verification.Store(list(anchors)))
        found = builder.build_client_verifier().verify(leaf, list(intermediates))  # 3, 4
    except (verification.VerificationError, *UNREADABLE) as error:
        reason = str(error).partition(" (encountered")[0].rpartition(": ")[2]
        reason = "nothing there issued it" if "candidates exhausted" in reason else reason
        raise CredentialError(
            f"the certificate does not lead to the trust anchor: {reason}",
            hint="is that the root certificate of the CA that issued it, and are the intermediate ones with the leaf?",
        ) from error
    return tuple(found.chain)


def _issuers_by_name(leaf: x509.Certificate, pool: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Those of ``pool`` whose names lead from the leaf upwards (one with the right name may still be the wrong one)."""
    found: list[x509.Certificate] = []
    try:
        wanted = {leaf.issuer}
        while new := [candidate for candidate in pool if candidate.subject in wanted and candidate not in found]:
            found += new
            wanted = {candidate.issuer for candidate in new}
    except UNREADABLE as error:
        raise CredentialError("a name in the certificate is malformed", hint="ask its CA for another one") from error
    return found


def _leaf_policy(purpose: Purpose) -> verification.ExtensionPolicy:
    """What a leaf's extensions must say; looser than the web's profile (which knows no critical subjectAltName)."""

    def end_entity(_: verification.Policy, __: x509.Certificate, value: x509.BasicConstraints | None) -> None:
        if value is not None and value.ca:
            raise ValueError("the leaf is a CA certificate")

    def usage(_: verification.Policy, __: x509.Certificate, value: x509.ExtendedKeyUsage) -> None:
        if purpose.value not in value:
            raise ValueError(f"the certificate is not for {purpose}")

    either = verification.Criticality.AGNOSTIC
    policy = verification.ExtensionPolicy.permit_all()
    policy = policy.may_be_present(x509.BasicConstraints, either, end_entity)
    return policy.require_present(x509.ExtendedKeyUsage, either, usage)


def _ca_policy(purpose: Purpose) -> verification.ExtensionPolicy:
    def usage(_: verification.Policy, __: x509.Certificate, value: x509.ExtendedKeyUsage | None) -> None:
        if value is not None and purpose.value not in value and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in value:
            raise ValueError(f"the CA may not certify {purpose}")

    policy = verification.ExtensionPolicy.webpki_defaults_ca()
    return policy.may_be_present(x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, usage)


def check_dates(certificate: x509.Certificate, *, now: datetime, what: str) -> None:
    """Checks that ``now`` lies within the certificate's validity, both ends included; ``what`` names it in the errors.

    Raises:
        CertificateExpiredError: it has ended.
        CertificateNotYetValidError: it has not begun.
    """
    if now > certificate.not_valid_after_utc:
        raise CertificateExpiredError(
            f"{what} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
            hint="renew it; or is the clock wrong? see: date -u",
        )
    if now < certificate.not_valid_before_utc:
        raise CertificateNotYetValidError(
            f"{what} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC, "
            f"and the clock says {now:%Y-%m-%d %H:%M:%S}",
            hint="set the clock right; see: date -u",
        )


def read_extensions(certificate: x509.Certificate) -> x509.Extensions:
    """The certificate's extensions, all of them parsed.

    Raises:
        CredentialError: one of them is malformed or stands there twice (RFC 5280, 4.2).
    """
    try:
        return certificate.extensions
    except UNREADABLE as error:
        raise CredentialError(
            "the certificate's extensions are malformed", hint="ask its CA for another one"
        ) from error


def _parse_block(block: bytes, name: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(block)
    except UNREADABLE as error:
        raise PemError(f"{name} holds a damaged certificate", hint="copy the file again") from error
