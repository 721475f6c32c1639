"""Enrollment over Secure Transport: what its two sides write on the wire.

RFC 7030 (EST), clarified by RFC 8951: bodies are base64 of DER, and Content-Transfer-Encoding means nothing.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import SignatureAlgorithmOID

from tpm_mtls.certificates import UNREADABLE
from tpm_mtls.errors import PemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

PREFIX = "/.well-known/est"
CACERTS = f"{PREFIX}/cacerts"
CSRATTRS = f"{PREFIX}/csrattrs"
SIMPLE_ENROLL = f"{PREFIX}/simpleenroll"
SIMPLE_REENROLL = f"{PREFIX}/simplereenroll"
"""Paths: RFC 7030, 3.2.2."""

CSR_TYPE = "application/pkcs10"
CERTIFICATES_TYPE = "application/pkcs7-mime"
CSRATTRS_TYPE = "application/csrattrs"
"""Media types: RFC 7030, 3.2.4; the answers to the two enrollments add ``smime-type=certs-only``."""

BODY_LIMIT = 64 * 1024
"""Bytes of a body, either way: a CSR is 1 KiB, four certificates with RSA-4096 keys are 12 KiB in base64."""

CERTIFICATES_LIMIT = 16
"""Certificates in one answer; cacerts with a root roll-over has five (RFC 7030, 4.1.3)."""

_NOT_EST = "is that the EST server's URL? a proxy or a portal may have answered"

_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")  # RFC 4648, 4; Python's own decoder lets padding stand anywhere

_EC_PUBLIC_KEY = ObjectIdentifier("1.2.840.10045.2.1")  # RFC 5480, 2.1.1
_SECP256R1 = ObjectIdentifier("1.2.840.10045.3.1.7")
_SECP384R1 = ObjectIdentifier("1.3.132.0.34")


def encode_body(der: bytes) -> bytes:
    """The body for ``der``: base64 in one line and one LF, which the strictest clients want (RFC 8951, 3.1)."""
    return base64.b64encode(der) + b"\n"


def decode_body(body: bytes) -> bytes:
    """The DER bytes in ``body``: base64 with line breaks and other white space anywhere, or none (RFC 8951, 3.1).

    Raises:
        PemError: it is empty, larger than `BODY_LIMIT` or no base64.
    """
    if len(body) > BODY_LIMIT:
        raise PemError(f"the EST message is larger than {BODY_LIMIT} bytes", hint=_NOT_EST)
    text = re.sub(rb"[ \t\r\n]+", b"", body)
    if not text:
        raise PemError("the EST message is empty", hint=_NOT_EST)
    if len(text) % 4 or not _BASE64.fullmatch(text):
        raise PemError("the EST message is not base64", hint=_NOT_EST)
    return base64.b64decode(text)


def encode_certificates(certificates: Sequence[x509.Certificate]) -> bytes:
    """The body with ``certificates`` as a certs-only CMS (RFC 7030, 4.1.3 and 4.2.3): a set, so their order is lost."""
    return encode_body(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


def decode_certificates(body: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in the certs-only CMS of ``body``, in no particular order; nothing about them is verified.

    Raises:
        PemError: not base64, too large, no certs-only CMS, or no certificate or more than `CERTIFICATES_LIMIT` in it.
    """
    der = decode_body(body)
    try:
        certificates = tuple(pkcs7.load_der_pkcs7_certificates(der))
    except UNREADABLE as error:
        raise PemError("the EST message holds no certificates in CMS form", hint=_NOT_EST) from error
    if not 1 <= len(certificates) <= CERTIFICATES_LIMIT:
        raise PemError(f"the EST message holds {len(certificates)} certificates", hint=_NOT_EST)
    return certificates


def encode_csr(csr: x509.CertificateSigningRequest) -> bytes:
    """The body of an enrollment request (RFC 7030, 4.2.1)."""
    return encode_body(csr.public_bytes(Encoding.DER))


def is_media_type(header: str | None, wanted: str) -> bool:
    """Whether the Content-Type ``header`` names the media type ``wanted``, with any parameters (RFC 9110, 8.3.1)."""
    return header is not None and header.partition(";")[0].strip().lower() == wanted


def encode_csrattrs() -> bytes:
    """The body that tells a client which key the CA likes best (RFC 7030, 4.5.2): EC P-256 or P-384, with SHA-256."""
    return encode_body(
        asn1.encode_der(
            _CsrAttrs(
                key=_Attribute(type=_EC_PUBLIC_KEY, values=asn1.SetOf([_SECP384R1, _SECP256R1])),
                signature=SignatureAlgorithmOID.ECDSA_WITH_SHA256,
            )
        )
    )


@asn1.sequence
class _Attribute:
    type: ObjectIdentifier
    values: asn1.SetOf[ObjectIdentifier]


@asn1.sequence
class _CsrAttrs:
    """CsrAttrs ::= SEQUENCE OF AttrOrOID, as the two elements that we send."""

    key: _Attribute
    signature: ObjectIdentifier
