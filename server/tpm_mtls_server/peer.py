"""Who is calling: the device or the operator behind a TLS client certificate. Pure functions, no I/O.

The two never mix: an operator's certificate is no device's, and a device's no operator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypedDict, TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tpm_mtls.certificates import UNREADABLE, read_extensions
from tpm_mtls.device_identity import EKU_OPERATOR, TpmIdentity, tpm_identity
from tpm_mtls.device_names import device_name
from tpm_mtls.errors import CertificateExpiredError, CertificateNotYetValidError, CredentialError
from tpm_mtls.operator_names import operator_name

if TYPE_CHECKING:
    from datetime import datetime

CERTIFICATE_LIMIT = 16 * 1024
"""Bytes of a peer's certificate; a device certificate has about 700, one with an RSA-4096 key 2 KiB."""

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_OPERATOR_USAGES = 2

_HINT = "enroll the device with our CA; see: tpm-mtls pki show"


@dataclass(frozen=True)
class Peer:
    """Who is behind one connection; always a `DevicePeer` or an `OperatorPeer`.

    Attributes:
        name: its name: a device's one dNSName, an operator's one rfc822Name.
        serial: the certificate's serial number.
        issuer: the issuing CA's name (DER).
        issuer_key: the issuing CA's key identifier (RFC 5280, 4.2.1.1); none when the certificate does not say.
        not_before: when the certificate's validity begins.
        not_after: when it ends.
    """

    name: str
    serial: int
    issuer: bytes
    issuer_key: bytes | None
    not_before: datetime
    not_after: datetime

    @property
    def serial_hex(self) -> str:
        """The serial number in lower-case hexadecimal, 20 bytes (RFC 5280, 4.1.2.2), as ``pki`` writes it."""
        return f"{self.serial:040x}"


@dataclass(frozen=True)
class DevicePeer(Peer):
    """A device.

    Attributes:
        tpm: the TPM that its key lives in, as its certificate says; none for a key that no TPM was proved for.
        certificate: its certificate, DER.
    """

    tpm: TpmIdentity | None = None
    certificate: bytes = b""

    @property
    def device(self) -> str:
        """Its name."""
        return self.name


@dataclass(frozen=True)
class OperatorPeer(Peer):
    """A person who operates the backend."""


AnyPeer: TypeAlias = DevicePeer | OperatorPeer


def identify(certificate: bytes) -> AnyPeer:
    """The device or operator that the TLS client certificate ``certificate`` (DER) is for.

    1. It is an X.509 certificate of a sane size.
    2. It is no CA certificate (RFC 5280, 4.2.1.9).
    3. Its extendedKeyUsage is there and has clientAuth (4.2.1.12): not one of the CA's server profile.
    4. With the extended key usage of operators it has those two only, and names exactly one operator: one rfc822Name
       and no other alternative name, so nothing that could name a device.
    5. Without, it names exactly one device: one dNSName and, at the most, its TPM beside it.

    Not verified here: the chain and the possession of the key (OpenSSL did, in this connection's handshake or in the
    one whose session it resumes), the dates (`check_dates`, at each request) and revocation (`revocation`).

    Raises:
        CredentialError: any of the steps fails.
    """
    if len(certificate) > CERTIFICATE_LIMIT:  # 1
        raise CredentialError(f"the certificate is larger than {CERTIFICATE_LIMIT} bytes", hint=_HINT)
    try:
        return _identify(x509.load_der_x509_certificate(certificate), certificate)
    except UNREADABLE as error:
        raise CredentialError("the certificate is malformed", hint=_HINT) from error


class _Facts(TypedDict):
    serial: int
    issuer: bytes
    issuer_key: bytes | None
    not_before: datetime
    not_after: datetime


def _identify(certificate: x509.Certificate, der: bytes) -> AnyPeer:
    extensions = read_extensions(certificate)
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:  # 2
        raise CredentialError("the certificate is a CA's", hint=_HINT)
    usage = _find(extensions, x509.ExtendedKeyUsage)
    if usage is None or ExtendedKeyUsageOID.CLIENT_AUTH not in usage:  # 3
        raise CredentialError("the certificate is not for TLS clients", hint=_HINT)
    authority = _find(extensions, x509.AuthorityKeyIdentifier)
    facts: _Facts = {
        "serial": certificate.serial_number,
        "issuer": certificate.issuer.public_bytes(),
        "issuer_key": authority.key_identifier if authority else None,
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
    }
    if EKU_OPERATOR in usage:  # 4
        if len(usage) != _OPERATOR_USAGES:
            raise CredentialError("the certificate is an operator's and something else's", hint=_HINT)
        return OperatorPeer(name=operator_name(certificate), **facts)
    name = device_name(certificate)  # 5
    alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return DevicePeer(name=name, tpm=tpm_identity(alternatives), certificate=der, **facts)


def check_dates(peer: Peer, *, now: datetime) -> None:
    """Checks that the peer's certificate is valid at ``now``, both ends included (RFC 5280, 4.1.2.5).

    The handshake checked this too, but a kept connection or a resumed session outlives it.

    Raises:
        CertificateExpiredError: its validity has ended.
        CertificateNotYetValidError: it has not begun.
    """
    if now > peer.not_after:
        raise CertificateExpiredError("certificate expired", hint="renew it: tpm-mtls keygen first-boot")
    if now < peer.not_before:
        raise CertificateNotYetValidError("certificate not yet valid", hint="is the server's clock right?")


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
