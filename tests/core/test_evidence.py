"""Evidence in a CSR: the attribute, the bundle, and everything that is refused."""

from __future__ import annotations

import subprocess

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from support.attestation import sized
from support.vectors import vector
from tpm_mtls.certificates import parse_csr, spki
from tpm_mtls.certification_request import attribute_value, build_csr
from tpm_mtls.errors import CsrRefusedError, EvidenceError
from tpm_mtls.evidence import (
    BUNDLE_LIMIT,
    CERTIFICATES_LIMIT,
    OID_ATTESTATION,
    OID_TPM_CERTIFY,
    STATEMENT_PART_LIMIT,
    Evidence,
    decode_bundle,
    encode_bundle,
    evidence_of_csr,
)
from tpm_mtls.structures import Certified, PublicArea, parse_attest, parse_public_area, verify_signature

EVIDENCE = Evidence(b"attest", b"signature", b"public", (b"\x30\x01a", b"\x30\x02bc"))
BUNDLE = encode_bundle(EVIDENCE)
KEY = ec.generate_private_key(ec.SECP256R1())


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def oid(dotted: str) -> bytes:
    return asn1.encode_der(ObjectIdentifier(dotted))


def octets(content: bytes) -> bytes:
    return der(0x04, content)


STATEMENT = der(0x30, octets(b"attest"), octets(b"signature"), octets(b"public"))
CERTIFY = oid(OID_TPM_CERTIFY.dotted_string)


def bundle(*statements: bytes, certificates: bytes = b"") -> bytes:
    return der(0x30, der(0x30, *statements), certificates)


def csr(*attributes: tuple[str, tuple[bytes, ...]]) -> x509.CertificateSigningRequest:
    """A CSR with these attributes and values, by hand; its signature is none."""
    listed = sorted(der(0x30, oid(kind), der(0x31, *sorted(values))) for kind, values in attributes)
    plain = build_csr(KEY, hashes.SHA256(), subject=x509.Name([]), attributes={})
    info = x509.load_der_x509_csr(plain).tbs_certrequest_bytes
    assert info.endswith(b"\xa0\x00")
    head = info[2:-2] if info[1] < 0x80 else info[3:-2]
    rest = plain[plain.index(info) + len(info) :]
    return x509.load_der_x509_csr(der(0x30, der(0x30, head, der(0xA0, *listed)), rest))


def test_a_bundle_is_the_drafts_structure() -> None:
    assert der(0x30, der(0x30, der(0x30, CERTIFY, STATEMENT)), der(0x30, b"\x30\x01a", b"\x30\x02bc")) == BUNDLE
    assert decode_bundle(BUNDLE) == EVIDENCE


def test_public_area_and_certificates_may_be_left_out() -> None:
    least = Evidence(b"attest", b"signature")
    assert decode_bundle(encode_bundle(least)) == least
    assert encode_bundle(least) == bundle(der(0x30, CERTIFY, der(0x30, octets(b"attest"), octets(b"signature"))))


@pytest.mark.parametrize("key", [KEY, rsa.generate_private_key(65537, 2048)], ids=["ec", "rsa"])
def test_openssl_verifies_a_request_with_evidence(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sensor-17")])
    request = build_csr(key, hashes.SHA256(), subject=subject, attributes={OID_ATTESTATION: BUNDLE})
    found = x509.load_der_x509_csr(request)

    assert found.is_signature_valid
    assert found.subject == subject
    assert evidence_of_csr(found) == EVIDENCE
    done = subprocess.run(
        ["openssl", "req", "-inform", "DER", "-noout", "-verify", "-text"],
        input=request,
        capture_output=True,
        check=True,
    )
    assert b"1.2.840.113549.1.9.16.2.59" in done.stdout


@pytest.mark.parametrize("digest", [hashes.SHA384(), hashes.SHA512()])
def test_other_digests_sign_requests_too(digest: hashes.HashAlgorithm) -> None:
    for key in (KEY, rsa.generate_private_key(65537, 2048)):
        request = build_csr(key, digest, subject=x509.Name([]), attributes={})
        found = x509.load_der_x509_csr(request)
        assert found.is_signature_valid
        assert found.signature_hash_algorithm is not None
        assert found.signature_hash_algorithm.name == digest.name


def test_a_request_without_the_attribute_has_no_evidence() -> None:
    assert evidence_of_csr(csr()) is None
    assert evidence_of_csr(csr(("1.2.3.4", (b"\x05\x00",)))) is None


def test_the_attribute_among_others_is_found() -> None:
    kind = OID_ATTESTATION.dotted_string
    assert evidence_of_csr(csr(("1.2.3.4", (b"\x05\x00",)), (kind, (BUNDLE,)))) == EVIDENCE


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ([(BUNDLE,), (BUNDLE,)], "2 attributes 1.2.840.113549.1.9.16.2.59 with 2 values"),
        ([(BUNDLE,), (b"\x30\x00",)], "2 attributes .* with 2 values"),
        ([(BUNDLE, b"\x30\x00")], "1 attributes .* with 2 values"),
        ([()], "1 attributes .* with 0 values"),
        ([(b"\x30\x00",)], "no AttestationBundle"),
        ([(b"\x05\x00",)], "no AttestationBundle"),
        ([(der(0x0C, b"garbage"),)], "no AttestationBundle"),
    ],
    ids=["twice", "twice, one empty", "two values", "no value", "empty", "null", "garbage"],
)
def test_the_attribute_stands_once_with_one_bundle(attributes: list[tuple[bytes, ...]], message: str) -> None:
    request = csr(*[(OID_ATTESTATION.dotted_string, values) for values in attributes])
    with pytest.raises(CsrRefusedError, match=message):
        evidence_of_csr(request)


_GOOD = der(0x30, CERTIFY, STATEMENT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no AttestationBundle"),
        (BUNDLE + b"\x00", "no AttestationBundle"),
        (bytes(BUNDLE_LIMIT + 1), f"more than {BUNDLE_LIMIT} bytes"),
        (bundle(), "expected one attestation statement by TPM2_Certify"),
        (bundle(_GOOD, _GOOD), "expected one attestation statement by TPM2_Certify"),
        (bundle(der(0x30, oid("2.23.133.20.2"), STATEMENT)), "expected one attestation statement by TPM2_Certify"),
        (bundle(der(0x30, CERTIFY, STATEMENT, der(0x16, b"hint"))), "no AttestationBundle"),
        (bundle(der(0x30, CERTIFY, der(0x30))), "tcg-attest-tpm-certify"),
        (bundle(der(0x30, CERTIFY, der(0x30, octets(b"a"), octets(b"s"), octets(b"p"), octets(b"?")))), "tcg-attest"),
        (bundle(der(0x30, CERTIFY, der(0x30, octets(b""), octets(b"s")))), "a part .* has 0 bytes"),
        (bundle(der(0x30, CERTIFY, der(0x30, octets(b"a"), octets(b"s"), octets(b"")))), "a part .* has 0 bytes"),
        (
            bundle(der(0x30, CERTIFY, der(0x30, octets(b"a"), octets(bytes(STATEMENT_PART_LIMIT + 1))))),
            f"a part .* has {STATEMENT_PART_LIMIT + 1} bytes",
        ),
        (bundle(_GOOD, certificates=der(0x30)), "has 0 certificates"),
        (bundle(_GOOD, certificates=der(0x30, *[b"\x30\x00"] * (CERTIFICATES_LIMIT + 1))), "has 9 certificates"),
        (bundle(_GOOD, certificates=der(0x30, b"\xa3\x00")), "is not X.509"),
        (der(0x30, b"\x30\x80" + _GOOD + b"\x00\x00"), "no AttestationBundle"),
    ],
    ids=range(16),
)
def test_any_other_bundle_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        decode_bundle(data)


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda content: der(0x30, der(0x30, content))))
def test_any_bytes_are_our_error(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        decode_bundle(data)


@given(st.integers(0, len(BUNDLE) - 1), st.binary(min_size=1, max_size=4))
def test_damage_raises_our_error_only(at: int, wrong: bytes) -> None:
    damaged = BUNDLE[:at] + wrong + BUNDLE[at + len(wrong) :]
    try:
        found = decode_bundle(damaged)
    except EvidenceError:
        return
    assert encode_bundle(found) == damaged


REQUEST = build_csr(KEY, hashes.SHA256(), subject=x509.Name([]), attributes={OID_ATTESTATION: BUNDLE})


@given(st.integers(0, len(REQUEST) - 1), st.binary(min_size=1, max_size=3))
def test_a_damaged_request_is_refused_or_badly_signed(at: int, wrong: bytes) -> None:
    damaged = REQUEST[:at] + wrong + REQUEST[at + len(wrong) :]
    try:
        request = parse_csr(damaged)
        evidence_of_csr(request)
        accepted = request.is_signature_valid
    except (CsrRefusedError, ValueError, UnsupportedAlgorithm):  # the last two: the key or the signature's algorithm
        return
    assert not accepted or damaged == REQUEST


@given(
    st.builds(
        Evidence,
        st.binary(min_size=1, max_size=99),
        st.binary(min_size=1, max_size=99),
        st.none() | st.binary(min_size=1, max_size=99),
        st.lists(st.binary(max_size=99).map(lambda content: der(0x30, content)), max_size=CERTIFICATES_LIMIT).map(
            tuple
        ),
    )
)
def test_what_is_written_is_read_again(evidence: Evidence) -> None:
    assert decode_bundle(encode_bundle(evidence)) == evidence


def test_attributes_that_are_no_der_are_our_error() -> None:
    request = csr((OID_ATTESTATION.dotted_string, (BUNDLE,)))
    assert attribute_value(request, ObjectIdentifier("1.2.3.4")) is None
    assert attribute_value(request, OID_ATTESTATION) == BUNDLE


@asn1.sequence
class _OldStatement:
    type: ObjectIdentifier
    statement: asn1.TLV
    hint: asn1.IA5String


@asn1.sequence
class _OldBundle:
    attestations: list[_OldStatement]
    certificates: list[x509.Certificate]


def test_the_drafts_sample_is_a_true_attestation_in_a_bad_request() -> None:
    """Its hint is of an older draft, and its own signature does not verify; the TPM's does, in the bare form."""
    request = x509.load_pem_x509_csr(vector("csr/ietf-tcgAttestTpmCertify.pem"))
    assert not request.is_signature_valid
    with pytest.raises(CsrRefusedError, match="no AttestationBundle"):
        evidence_of_csr(request)

    value = attribute_value(request, OID_ATTESTATION)
    assert value is not None
    sample = asn1.decode_der(_OldBundle, value)
    (old,) = sample.attestations
    evidence = decode_bundle(bundle(der(0x30, oid(old.type.dotted_string), asn1.encode_der(old.statement))))
    assert evidence.public is not None
    key, found = parse_public_area(evidence.public), parse_attest(evidence.attest)
    assert isinstance(found.attested, Certified)
    assert found.attested.name == key.name
    assert key.spki == spki(request.public_key())  # type: ignore[arg-type]  # it is an RSA key
    assert found.extra_data == bytes.fromhex("00ff55aa")

    ak = as_attestation_key(sample.certificates[0].public_key())  # type: ignore[arg-type]  # it is an RSA key
    verify_signature(found.data, evidence.signature, ak)
    with pytest.raises(EvidenceError, match="did not sign"):
        verify_signature(found.data, evidence.signature[:-1] + b"\x00", ak)


def as_attestation_key(key: rsa.RSAPublicKey) -> PublicArea:
    """The sample has the attestation key's certificate only; its public area as it must have been."""
    modulus = key.public_numbers().n.to_bytes(256, "big")
    return parse_public_area(bytes.fromhex("0001000b00050072 0000 0010 0014000b 0800 00000000") + sized(modulus))
