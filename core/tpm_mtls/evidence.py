"""Attestation evidence in a certificate request: that its key lives in a TPM, in the form that the IETF gives it.

draft-ietf-lamps-csr-attestation, 3.1 to 3.3, and the TCG's statement for TPM2_Certify::

    AttestationBundle ::= SEQUENCE {
        attestations SEQUENCE SIZE (1..MAX) OF AttestationStatement,
        certs        SEQUENCE SIZE (1..MAX) OF LimitedCertChoices OPTIONAL }
    AttestationStatement ::= SEQUENCE { type OBJECT IDENTIFIER, stmt ANY DEFINED BY type }

    Tcg-csr-tpm-certify ::= SEQUENCE {
        tpmSAttest  OCTET STRING,            -- TPMS_ATTEST
        signature   OCTET STRING,            -- TPMT_SIGNATURE, or its bare value
        tpmTPublic  OCTET STRING OPTIONAL }  -- TPMT_PUBLIC

Of a bundle's many possibilities one is accepted: one statement, of this type, and X.509 certificates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from tpm_mtls.certification_request import attribute_value
from tpm_mtls.errors import CsrRefusedError, EvidenceError

if TYPE_CHECKING:
    from cryptography import x509

OID_ATTESTATION: Final = ObjectIdentifier("1.2.840.113549.1.9.16.2.59")
"""id-aa-attestation, the CSR attribute that holds an AttestationBundle."""

OID_TPM_CERTIFY: Final = ObjectIdentifier("2.23.133.20.1")
"""tcg-attest-tpm-certify, the type of the statement."""

BUNDLE_LIMIT = 12 * 1024
"""Bytes of a bundle; a certificate request has at most 16 KiB. With four RSA-4096 certificates it is 8 KiB."""

CERTIFICATES_LIMIT = 8
"""Certificates in a bundle; from an attestation key to its root there are three or four."""

STATEMENT_PART_LIMIT = 1024
"""Bytes of each part of the statement."""

_HINT = "make new evidence: tpm-mtls keygen first-boot"


@dataclass(frozen=True)
class Evidence:
    """What a device shows for its key; nothing of it is verified.

    Attributes:
        attest: the TPMS_ATTEST of TPM2_Certify (`tpm_mtls.structures.parse_attest`).
        signature: by the attestation key: TPMT_SIGNATURE or the bare value.
        public: the certified key's TPMT_PUBLIC; none if it was left out.
        certificates: X.509 certificates (DER) that may help, in no particular order.
    """

    attest: bytes
    signature: bytes
    public: bytes | None = None
    certificates: tuple[bytes, ...] = ()


@asn1.sequence
class _TpmCertify:
    attest: bytes
    signature: bytes
    public: bytes | None


@asn1.sequence
class _Statement:
    type: ObjectIdentifier
    statement: asn1.TLV


@asn1.sequence
class _Bundle:
    attestations: list[_Statement]
    certificates: list[asn1.TLV] | None


_X509_TAG: Final = b"\x30"  # SEQUENCE; OtherCertificateFormat has [3]


def encode_bundle(evidence: Evidence) -> bytes:
    """``evidence`` as an AttestationBundle (DER): the value of the CSR attribute `OID_ATTESTATION`."""
    statement = _TpmCertify(attest=evidence.attest, signature=evidence.signature, public=evidence.public)
    certificates = [asn1.decode_der(asn1.TLV, der) for der in evidence.certificates]
    return asn1.encode_der(
        _Bundle(
            attestations=[
                _Statement(type=OID_TPM_CERTIFY, statement=asn1.decode_der(asn1.TLV, asn1.encode_der(statement)))
            ],
            certificates=certificates or None,
        )
    )


def decode_bundle(der: bytes) -> Evidence:
    """The evidence in the AttestationBundle ``der``.

    Not verified: anything that it says. The certificates need not even parse.

    Raises:
        EvidenceError: larger than `BUNDLE_LIMIT`, no strict DER, not one statement of type `OID_TPM_CERTIFY`, one of
            its parts empty or larger than `STATEMENT_PART_LIMIT`, more certificates than `CERTIFICATES_LIMIT`, or one
            in another format than X.509.
    """
    if len(der) > BUNDLE_LIMIT:
        raise EvidenceError(f"attestation evidence of more than {BUNDLE_LIMIT} bytes", hint=_HINT)
    try:
        bundle = asn1.decode_der(_Bundle, der)
    except ValueError as error:
        raise EvidenceError("the attestation evidence is no AttestationBundle", hint=_HINT) from error
    kinds = [statement.type for statement in bundle.attestations]
    if kinds != [OID_TPM_CERTIFY]:
        raise EvidenceError(
            f"expected one attestation statement by TPM2_Certify, got {len(kinds)} or others", hint=_HINT
        )
    try:
        statement = bundle.attestations[0].statement.parse(_TpmCertify)
    except ValueError as error:
        raise EvidenceError("the attestation statement is malformed (tcg-attest-tpm-certify)", hint=_HINT) from error
    for part in (statement.attest, statement.signature, statement.public):
        if part is not None and not 1 <= len(part) <= STATEMENT_PART_LIMIT:
            raise EvidenceError(f"a part of the attestation statement has {len(part)} bytes", hint=_HINT)
    return Evidence(statement.attest, statement.signature, statement.public, _certificates(bundle))


def _certificates(bundle: _Bundle) -> tuple[bytes, ...]:
    if bundle.certificates is None:
        return ()
    if not 1 <= len(bundle.certificates) <= CERTIFICATES_LIMIT:
        raise EvidenceError(f"the attestation evidence has {len(bundle.certificates)} certificates", hint=_HINT)
    if any(certificate.tag_bytes != _X509_TAG for certificate in bundle.certificates):
        raise EvidenceError("a certificate of the attestation evidence is not X.509", hint=_HINT)
    return tuple(asn1.encode_der(certificate) for certificate in bundle.certificates)


def evidence_of_csr(csr: x509.CertificateSigningRequest) -> Evidence | None:
    """The evidence in the attribute `OID_ATTESTATION` of ``csr``; none if it has no such attribute.

    Not verified: the request's signature, which covers the evidence; the caller checks it. And the evidence.

    Raises:
        CsrRefusedError: the attribute is there twice, is empty, has several values, or is what `decode_bundle` refuses.
    """
    bundle = attribute_value(csr, OID_ATTESTATION)
    if bundle is None:
        return None
    try:
        return decode_bundle(bundle)
    except EvidenceError as error:
        raise CsrRefusedError(str(error), hint=error.hint) from error
