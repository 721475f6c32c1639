"""Is that the certificate that this device asked for? Checks of the CA's answer, and of what lies in the folder."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.certificates import (
    UNREADABLE,
    Purpose,
    certificate_spki,
    certificates_pem,
    check_chain,
    check_matches,
    find_certificate,
    load_certificates,
)
from tpm_mtls.device_names import device_name
from tpm_mtls.errors import CertificateExpiredError, CertificateMismatchError, IdentityError, PemError
from tpm_mtls.files import read_capped
from tpm_mtls.identity import CERTIFICATE, TRUST
from tpm_mtls.renewal import renewal_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path


def check_issued(
    answer: Sequence[x509.Certificate],
    ca: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    public_key: bytes,
    device: str | None,
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Checks what an enrollment brought.

    1. One certificate of ``answer`` is for ``public_key`` (DER SPKI).
    2. It is valid at ``now``, and its issuers too; it leads to one of ``anchors``, over certificates of ``answer`` and
       of ``ca`` (the CA's cacerts, which are not trusted for anything else); it is for TLS clients and no CA.
    3. Its one dNSName is ``device``; any device's, where the CA alone says how the device is called.

    The caller vouches for ``anchors``. Not verified: revocation; a new certificate is on no list yet.

    Returns:
        What a TLS client sends: the leaf, then its issuers without the anchor.

    Raises:
        CertificateMismatchError: 1 or 3.
        CertificateNotYetValidError, CertificateExpiredError: 2, the dates.
        CredentialError: 2, the rest.
    """
    leaf = find_certificate(answer, public_key)  # 1
    pool = [certificate for certificate in [*answer, *ca] if certificate != leaf]
    chain = check_chain(leaf, pool, anchors, now=now, purpose=Purpose.CLIENT)  # 2
    _check_device(leaf, device)  # 3
    return chain[:-1]


def find_attestation_certificate(
    answer: Sequence[x509.Certificate], issuers: Sequence[x509.Certificate], public_key: bytes
) -> bytes | None:
    """The certificate (DER) of the attestation key ``public_key`` (DER SPKI) in ``answer``; none if it has none.

    Checked: one of ``issuers``, which the caller has verified, issued it. Not verified: what it says.

    Raises:
        CertificateMismatchError: somebody else issued it.
    """
    found = next((each for each in answer if certificate_spki(each) == public_key), None)
    if found is None:
        return None
    for issuer in issuers:
        try:
            found.verify_directly_issued_by(issuer)
        except (*UNREADABLE, TypeError, InvalidSignature):
            continue
        return found.public_bytes(Encoding.DER)
    raise CertificateMismatchError(
        "the attestation key's certificate was issued by another CA than the device's",
        hint="the CA is not the one that was meant, or somebody changed its answer",
    )


def parse_certificate(der: bytes) -> x509.Certificate:
    """The certificate in ``der``; nothing about it is verified.

    Raises:
        PemError: it is damaged.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise PemError("a certificate is damaged", hint="restore it from a backup, or enroll anew") from error


def check_stored(
    folder: Path,
    *,
    public_key: bytes,
    now: datetime,
    device: str | None = None,
    anchors: Sequence[x509.Certificate] | None = None,
) -> None:
    """Checks the certificate and trust files in ``folder``.

    1. The first certificate is for ``public_key`` (DER SPKI).
    2. It is valid and leads to a trust anchor of ``folder`` at ``now``, as in `check_issued`.
    3. Its one alternative name is ``device``, if given.
    4. The trust anchors are ``anchors``, if given.

    Raises:
        IdentityError: a file is missing; 4.
        TpmMtlsError: it cannot be read or is no certificate file; else as `check_issued`.
    """
    leaf, *others = load_stored(folder, CERTIFICATE)
    trusted = load_stored(folder, TRUST)
    check_matches(leaf, public_key)  # 1
    check_chain(leaf, others, trusted, now=now, purpose=Purpose.CLIENT)  # 2
    _check_device(leaf, device)  # 3
    if anchors is not None and read_capped(folder / TRUST) != certificates_pem(anchors):  # 4
        raise IdentityError(f"{folder / TRUST} has other trust anchors", hint="name the same --trust file again")


def due_at(certificate: x509.Certificate) -> datetime:
    """When renewal is due: at two thirds of the certificate's life."""
    return renewal_at(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


@contextmanager
def explained_expiry(folder: Path) -> Iterator[None]:
    """Where the present certificate of ``folder`` must vouch for its renewal: says what to do if it has expired."""
    try:
        yield
    except CertificateExpiredError as error:
        error.hint = (
            "it cannot vouch for its own renewal any more; is the clock right (date -u)? if it is, move "
            f"{folder} away and enroll anew: tpm-mtls keygen first-boot --new-identity"
        )
        raise


def _check_device(leaf: x509.Certificate, device: str | None) -> None:
    named = device_name(leaf)
    if device is not None and named != device:
        raise CertificateMismatchError(
            f"the certificate is for the device {named}, not for {device}",
            hint="the CA took another token, calls this device otherwise, or is not the one that was meant",
        )


def load_stored(folder: Path, name: str) -> tuple[x509.Certificate, ...]:
    """The certificates in the file ``name`` of the identity folder; nothing about them is verified.

    Raises:
        IdentityError: it is missing.
        PemError, StorageError: it cannot be read or is no certificate file.
    """
    if not (folder / name).exists():
        hint = "restore it from a backup, or enroll anew"
        if name == CERTIFICATE:
            hint = f"bring it back from the TPM: tpm-mtls keygen restore; else {hint}"
        raise IdentityError(f"{folder / name} is missing", hint=hint)
    return load_certificates(folder / name)
