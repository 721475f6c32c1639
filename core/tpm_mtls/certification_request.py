"""Certificate requests with attributes (PKCS #10, RFC 2986, 4), which `cryptography` writes as strings only.

Whoever signs is a private key of `cryptography`'s kind: in a file, or in the TPM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ObjectIdentifier, SignatureAlgorithmOID

from tpm_mtls.certificates import spki
from tpm_mtls.errors import CsrRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

_RSA_ALGORITHMS = {
    "sha256": SignatureAlgorithmOID.RSA_WITH_SHA256,
    "sha384": SignatureAlgorithmOID.RSA_WITH_SHA384,
    "sha512": SignatureAlgorithmOID.RSA_WITH_SHA512,
}
_ECDSA_ALGORITHMS = {
    "sha256": SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    "sha384": SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    "sha512": SignatureAlgorithmOID.ECDSA_WITH_SHA512,
}


@asn1.sequence
class _Attribute:
    type: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _RequestInfo:
    version: int
    subject: asn1.TLV
    public_key: asn1.TLV
    attributes: Annotated[asn1.SetOf[_Attribute], asn1.Implicit(0)]


@asn1.sequence
class _Algorithm:
    algorithm: ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _Request:
    info: _RequestInfo
    algorithm: _Algorithm
    signature: asn1.BitString


def build_csr(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    digest: hashes.HashAlgorithm,
    *,
    subject: x509.Name,
    attributes: Mapping[ObjectIdentifier, bytes],
) -> bytes:
    """A certificate request (DER), signed by ``key``: one signature, ECDSA or RSASSA-PKCS1-v1_5.

    Args:
        key: signs, and is what the request is for.
        digest: SHA-256, SHA-384 or SHA-512.
        subject: the name asked for; may be empty.
        attributes: for each type its one value, DER.
    """
    info = _RequestInfo(
        version=0,
        subject=_tlv(subject.public_bytes()),
        public_key=_tlv(spki(key.public_key())),
        attributes=asn1.SetOf(
            [_Attribute(type=kind, values=asn1.SetOf([_tlv(value)])) for kind, value in attributes.items()]
        ),
    )
    data = asn1.encode_der(info)
    # RFC 4055, 5: NULL parameters for RSA; RFC 5758, 3.2: none for ECDSA
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = _Algorithm(algorithm=_RSA_ALGORITHMS[digest.name], parameters=asn1.Null())
        signature = key.sign(data, padding.PKCS1v15(), digest)
    else:
        algorithm = _Algorithm(algorithm=_ECDSA_ALGORITHMS[digest.name], parameters=None)
        signature = key.sign(data, ec.ECDSA(digest))
    return asn1.encode_der(_Request(info=info, algorithm=algorithm, signature=asn1.BitString(signature, 0)))


def attribute_value(csr: x509.CertificateSigningRequest, kind: ObjectIdentifier) -> bytes | None:
    """The one value (DER) of the attribute ``kind`` of ``csr``; none if it has no such attribute.

    Not verified: the request's signature, and the value.

    Raises:
        CsrRefusedError: the attribute is there twice, or has no value or several; or the attributes are malformed.
    """
    hint = "make another request; an attribute stands once, with one value"
    try:
        info = asn1.decode_der(_RequestInfo, csr.tbs_certrequest_bytes)
    except ValueError as error:
        raise CsrRefusedError("the certificate request's attributes are malformed", hint=hint) from error
    found = [attribute for attribute in info.attributes.as_list() if attribute.type == kind]
    if not found:
        return None
    values = [value for attribute in found for value in attribute.values.as_list()]
    if len(found) != 1 or len(values) != 1:
        raise CsrRefusedError(
            f"the certificate request has {len(found)} attributes {kind.dotted_string} with {len(values)} values",
            hint=hint,
        )
    return asn1.encode_der(values[0])


def _tlv(der: bytes) -> asn1.TLV:
    return asn1.decode_der(asn1.TLV, der)
