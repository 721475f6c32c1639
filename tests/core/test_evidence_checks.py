"""The checks that the device makes before the CA does. What each refuses is tested with the CA's verifier, too."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support import attestation
from support.attestation import AttestationKey
from tpm_mtls.errors import CertificateExpiredError, EvidenceRefusedError, StateError
from tpm_mtls.evidence_checks import (
    Residency,
    check_attestation_key,
    check_certification,
    check_endorsement_key,
    check_freshness,
    check_requested_key,
    check_residency,
    numbered,
)
from tpm_mtls.structures import EkTemplate, PublicArea, ek_public, parse_public_area

TLS = 0x00040472  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign
ANY = frozenset({b""})


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def ak() -> AttestationKey:
    return AttestationKey(new_key(), "ecdsa-sha256")


@pytest.fixture
def key() -> PublicArea:
    """A TLS key."""
    return parse_public_area(attestation.public_area(new_key(), attributes=TLS))


def refused(check: int, match: str) -> pytest.RaisesExc[EvidenceRefusedError]:
    return pytest.raises(EvidenceRefusedError, match=match, check=lambda error: error.check == check)


def test_2_an_endorsement_key_is_the_certified_one() -> None:
    ek = new_key()
    public = ek_public(EkTemplate.ECC_P256, spki(ek))
    check_endorsement_key(public, spki(ek))
    with refused(2, "is another than its certificate's"):
        check_endorsement_key(public, spki(new_key()))


def test_3_an_attestation_key_is_restricted(ak: AttestationKey) -> None:
    check_attestation_key(ak.public)
    with refused(3, "would sign anything"):
        check_attestation_key(AttestationKey(ak.key, ak.scheme, attributes=TLS).public)


def test_3_an_object_without_a_key_is_none(ak: AttestationKey) -> None:
    keyed_hash = (
        attestation.number(0x0008)  # TPM_ALG_KEYEDHASH
        + attestation.number(0x000B)
        + attestation.number(attestation.AK_ATTRIBUTES, 4)
        + attestation.sized(b"")
        + attestation.number(0x0005)  # HMAC with SHA-256
        + attestation.number(0x000B)
        + attestation.sized(bytes(32))
    )
    with refused(3, "would sign anything"):
        check_attestation_key(parse_public_area(keyed_hash))
    assert ak.public.spki is not None


def test_5_and_7_a_certification_is_of_this_key_by_that_one_and_fresh(ak: AttestationKey, key: PublicArea) -> None:
    attest = attestation.attest(attestation.certified(key.name), extra=b"fresh")
    found, certified = check_certification(attest, ak.sign_as_tpm(attest), ak.public, key.data)
    assert certified == key
    check_freshness(found, b"fresh")
    with refused(7, "answers another nonce"):
        check_freshness(found, b"stale")
    with refused(5, "did not sign"):
        check_certification(attest, AttestationKey(new_key(), ak.scheme).sign_as_tpm(attest), ak.public, key.data)


def test_5_a_key_is_fixed_or_known_to_be_imported(key: PublicArea) -> None:
    assert check_residency(key, policies=ANY, imported=False) is Residency.FIXED
    imported = parse_public_area(attestation.public_area(new_key(), attributes=0x00040440))
    assert check_residency(imported, policies=ANY, imported=True) is Residency.IMPORTED
    with refused(5, "is not fixed to its TPM"):
        check_residency(imported, policies=ANY, imported=False)


def test_6_the_request_is_for_the_certified_key(key: PublicArea) -> None:
    check_requested_key(key, key.spki or b"")
    with refused(6, "is not the request's key"):
        check_requested_key(key, spki(new_key()))


def test_a_check_that_was_refused_keeps_its_number_and_what_is_no_evidence_is_not_numbered() -> None:
    with refused(1, "late"), numbered(1):
        raise CertificateExpiredError("late", hint="h")
    with refused(2, "x"), numbered(1):
        raise EvidenceRefusedError("x", hint="h", check=2)
    with pytest.raises(StateError), numbered(1):
        raise StateError("x", hint="h")
