"""Checks 1 to 7: evidence that passes, then the same with exactly one thing wrong, and the number that refuses it."""

from __future__ import annotations

import dataclasses
import hmac
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from support import attestation
from support.attestation import AttestationKey
from support.evidence import (
    NONCE,
    NOW,
    SECRET,
    TLS_ATTRIBUTES,
    Case,
    Certifier,
    SoftwareTpm,
    der,
    ek_extensions,
    good_case,
    new_key,
    new_root,
    public_of,
    tls_public,
)
from support.faulty_keys import faulty_modulus
from tpm_mtls.certificates import load_certificates, spki
from tpm_mtls.errors import EvidenceError, EvidenceRefusedError, PemError
from tpm_mtls.evidence import Evidence
from tpm_mtls.evidence_checks import Residency
from tpm_mtls.structures import Attribute, EkTemplate, ek_hash, ek_public, parse_public_area
from tpm_mtls_pki.evidence import (
    Challenge,
    EkTrust,
    Terms,
    Voucher,
    judge_evidence,
    make_activation,
)

if TYPE_CHECKING:
    from support.reference_device import ReferenceDevice
    from support.tpm import SimulatedTpm

USER_WITH_AUTH = 0x40
RESTRICTED, DECRYPT, SIGN, X509SIGN = 0x00010000, 0x00020000, 0x00040000, 0x00080000
FIXED_TPM, FIXED_PARENT, ORIGIN = 0x2, 0x10, 0x20
AK = attestation.AK_ATTRIBUTES


@pytest.fixture(scope="module")
def tpm() -> SoftwareTpm:
    return SoftwareTpm()


@pytest.fixture(scope="module")
def maker() -> Certifier:
    return new_root()


@pytest.fixture
def case(tpm: SoftwareTpm, maker: Certifier) -> Case:
    return good_case(tpm, maker)


def assert_refused(case: Case, check: int, match: str) -> None:
    with pytest.raises(EvidenceRefusedError, match=match) as caught:
        case.judge()
    assert caught.value.check == check
    assert caught.value.hint


# --- success


def test_sound_evidence_passes_and_says_what_it_proves(case: Case, tpm: SoftwareTpm) -> None:
    verdict = case.judge()
    assert verdict.ek_hash == tpm.ek_hash
    assert verdict.endorsed_by == "CN=Maker Root"
    assert verdict.residency is Residency.FIXED
    assert verdict.key.spki == case.public_key
    assert verdict.ak == tpm.ak.public


@pytest.mark.parametrize("device", ["rsa", "ecc"], indirect=True)
def test_evidence_from_a_tpm_passes(device: ReferenceDevice, genuine_tpm: SimulatedTpm) -> None:
    """RSA-2048 and P-384 endorsement keys; and the same evidence fails for another nonce, key or TPM maker."""
    folder = genuine_tpm.simulator.folder / "ca"
    trust = EkTrust(
        load_certificates(folder / "swtpm-localca-rootca-cert.pem"), load_certificates(folder / "issuercert.pem")
    )
    activation, blob, encrypted = make_activation(
        ek_certificate=device.ek_certificate, ek_public=None, ek_chain=[], ak_public=device.ak.public
    )
    assert device.activate(blob, encrypted) == activation.secret
    proof = device.certify(hmac.digest(activation.secret, NONCE, "sha256"))
    case = Case(
        Evidence(proof.attest, proof.signature, proof.public),
        Challenge(NONCE, activation),
        device.key.spki,
        Terms(trust),
        datetime.now(UTC),
    )
    assert case.judge().residency is Residency.FIXED
    assert case.but(terms=Terms(EkTrust(), listed=True)).judge().endorsed_by == "allow-list"
    assert_refused(case.but(challenge=Challenge(bytes(32), activation)), 7, "answers another nonce")
    assert_refused(case.but(public_key=device.ak.spki), 6, "not the request's key")
    assert_refused(case.but(terms=Terms(EkTrust())), 1, "no TPM maker is trusted")
    restricted = device.certify(hmac.digest(activation.secret, NONCE, "sha256"), key=device.ak)
    own = Evidence(restricted.attest, restricted.signature, restricted.public)
    assert_refused(case.but(evidence=own, public_key=device.ak.spki), 5, "is no TLS key")


@pytest.mark.parametrize("scheme", ["rsassa-sha256", "rsapss-sha256", "rsassa-sha512"])
def test_rsa_attestation_keys_pass(maker: Certifier, scheme: str) -> None:
    tpm = SoftwareTpm(ak=AttestationKey(rsa.generate_private_key(65537, 2048), scheme))
    assert good_case(tpm, maker).judge().ak.algorithm == "rsa-2048"


def test_a_bare_signature_passes(case: Case, tpm: SoftwareTpm) -> None:
    bare = dataclasses.replace(case.evidence, signature=tpm.ak.sign(case.evidence.attest))
    case.but(evidence=bare).judge()


# --- check 1


def test_1_the_endorsement_key_is_a_makers_or_on_the_list(case: Case, tpm: SoftwareTpm, maker: Certifier) -> None:
    without = case.asked(ek_certificate=None)
    assert_refused(without, 1, "has no certificate and is not on the allow-list")
    assert without.but(terms=Terms(EkTrust(), listed=True)).judge().endorsed_by == "allow-list"
    assert_refused(case.but(terms=Terms(EkTrust((new_root("Other").certificate,)))), 1, "no trusted TPM maker")
    expired = maker.certify(
        "",
        tpm.ek.public_key(),
        ek_extensions(),
        end=NOW.replace(year=NOW.year - 1),
        start=NOW.replace(year=NOW.year - 2),
    )
    assert_refused(case.asked(ek_certificate=expired), 1, "the EK certificate expired")


def test_1_intermediates_come_from_the_nonce_request_or_the_evidence(tpm: SoftwareTpm, maker: Certifier) -> None:
    between = maker.below("Between")
    case = good_case(tpm, between).but(terms=Terms(EkTrust((maker.certificate,))))
    assert_refused(case, 1, "no trusted TPM maker")
    case.asked(ek_chain=(between.certificate,)).judge()
    sent = dataclasses.replace(case.evidence, certificates=(between.der,))
    case.but(evidence=sent).judge()
    damaged = dataclasses.replace(case.evidence, certificates=(between.der, b"\x30\x00"))
    assert_refused(case.but(evidence=damaged), 1, "a certificate of the evidence is damaged")


def test_1_an_endorsement_key_that_can_be_factored_proves_nothing(case: Case) -> None:
    key = rsa.RSAPublicNumbers(65537, faulty_modulus(2048)).public_key()
    faulty = case.asked(ek=ek_public(EkTemplate.RSA_2048, spki(key)), ek_certificate=None)
    assert_refused(faulty.but(terms=Terms(EkTrust(), listed=True)), 1, "CVE-2017-15361")


# --- check 2


def test_2_the_public_area_is_the_certified_keys(case: Case, tpm: SoftwareTpm) -> None:
    decoy = ek_public(EkTemplate.ECC_P256, spki(new_key().public_key()))
    assert_refused(case.asked(ek=decoy), 2, "is another than its certificate's")
    # on the allow-list, but with the certificate of another chip
    assert_refused(
        case.asked(ek=decoy).but(terms=Terms(EkTrust(), listed=True)), 2, "is another than its certificate's"
    )
    case.asked(ek=ek_public(EkTemplate.HIGH_ECC_P256, tpm.ek_spki)).judge()


@pytest.mark.parametrize("lost", [RESTRICTED, DECRYPT, FIXED_TPM, FIXED_PARENT, ORIGIN])
def test_2_it_is_an_endorsement_key(case: Case, tpm: SoftwareTpm, lost: int) -> None:
    data = ek_public(EkTemplate.ECC_P256, tpm.ek_spki).data
    attributes = int.from_bytes(data[4:8], "big") & ~lost
    changed = parse_public_area(data[:4] + attributes.to_bytes(4, "big") + data[8:])
    assert_refused(case.asked(ek=changed), 2, "that is no endorsement key")


# --- check 3


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (AK & ~RESTRICTED, "the attestation key would sign anything"),
        (AK & ~SIGN, "the attestation key would sign anything"),
        (AK | DECRYPT, "the attestation key would sign anything"),
        (AK | X509SIGN, "the attestation key would sign anything"),
        (AK & ~FIXED_TPM, "the attestation key is not fixed to a TPM"),
        (AK & ~FIXED_PARENT, "the attestation key is not fixed to a TPM"),
        (AK & ~ORIGIN, "the attestation key is not fixed to a TPM"),
    ],
)
def test_3_the_attestation_key_signs_only_what_its_tpm_wrote(
    case: Case, tpm: SoftwareTpm, attributes: int, message: str
) -> None:
    """Otherwise whoever has it invents a Certify: which `SoftwareTpm` does."""
    assert_refused(case.asked(ak=public_of(tpm.ak, attributes=attributes)), 3, message)


@pytest.mark.parametrize(
    ("key", "scheme", "fields"),
    [
        (new_key(), "null", {}),
        (new_key(), "ecdsa-sha1", {}),
        (new_key(), "ecdsa-sha256", {"name": "sha1"}),
        (ec.generate_private_key(ec.SECP521R1()), "ecdsa-sha256", {}),
        (rsa.generate_private_key(65537, 2048), "rsassa-sha1", {}),
        (rsa.generate_private_key(65537, 2048), "null", {}),
        (rsa.generate_private_key(65537, 1024), "rsassa-sha256", {}),  # noqa: S505 - is to be refused
    ],
)
def test_3_its_algorithm_is_acceptable(case: Case, key: attestation.Key, scheme: str, fields: dict[str, Any]) -> None:
    area = parse_public_area(attestation.public_area(key, scheme, **fields))
    assert_refused(case.asked(ak=area), 3, r"an attestation key of .* is not accepted")


def test_3_it_cannot_be_factored(case: Case) -> None:
    modulus = faulty_modulus(2048).to_bytes(256, "big")
    good = attestation.public_area(rsa.generate_private_key(65537, 2048), "rsassa-sha256")
    assert_refused(case.asked(ak=parse_public_area(good[:-256] + modulus)), 3, "CVE-2017-15361")


# --- check 4


def test_4_a_credential_was_activated_or_a_certificate_vouches(case: Case, tpm: SoftwareTpm) -> None:
    bare = tpm.certify(extra=NONCE)
    plain = case.but(challenge=Challenge(NONCE), evidence=bare)
    assert_refused(plain, 4, "no credential was activated, and no certificate of this CA vouches")
    voucher = Voucher.of_key("e" * 64, spki(tpm.ak.key.public_key()))
    verdict = plain.but(terms=Terms(EkTrust(), voucher=voucher)).judge()
    assert (verdict.ek_hash, verdict.endorsed_by, verdict.ak.name) == ("e" * 64, "certificate", b"")
    other = Voucher.of_key("e" * 64, spki(new_key().public_key()))
    assert_refused(plain.but(terms=Terms(EkTrust(), voucher=other)), 5, "did not sign this attestation")
    stale = tpm.certify(extra=bytes(32))
    assert_refused(plain.but(terms=Terms(EkTrust(), voucher=voucher), evidence=stale), 7, "answers another nonce")


def test_4_a_voucher_does_not_stand_in_for_an_activation_that_was_asked_for(case: Case, tpm: SoftwareTpm) -> None:
    voucher = Voucher.of_key("e" * 64, spki(tpm.ak.key.public_key()))
    terms = dataclasses.replace(case.terms, voucher=voucher)
    assert_refused(case.but(terms=terms, evidence=tpm.certify(extra=NONCE)), 7, "the credential was not activated")


def test_4_rsa_attestation_keys_may_be_vouched_for(case: Case) -> None:
    tpm = SoftwareTpm(ak=AttestationKey(rsa.generate_private_key(65537, 2048), "rsapss-sha256"))
    voucher = Voucher.of_key("e" * 64, spki(tpm.ak.key.public_key()))
    given = case.but(
        challenge=Challenge(NONCE),
        evidence=tpm.certify(extra=NONCE),
        public_key=spki(tpm.key.public_key()),
        terms=Terms(EkTrust(), voucher=voucher),
    )
    assert given.judge().ak.spki == spki(tpm.ak.key.public_key())


# --- check 5


def test_5_the_attestation_key_that_was_activated_signed(case: Case, tpm: SoftwareTpm) -> None:
    stranger = AttestationKey(new_key(), "ecdsa-sha256")
    assert_refused(case.but(evidence=tpm.certify(signer=stranger)), 5, "did not sign this attestation")


def test_5_it_is_a_certification_by_a_tpm(case: Case, tpm: SoftwareTpm) -> None:
    assert_refused(case.but(evidence=tpm.certify(magic=b"\xffTCH")), 5, "does not come from a TPM")
    assert_refused(case.but(evidence=tpm.certify(kind=0x8019)), 5, "is neither a Certify nor a Quote")
    quote = attestation.attest(
        attestation.quoted((0x000B, b"\xff\0\0")), kind=attestation.QUOTE, extra=hmac.digest(SECRET, NONCE, "sha256")
    )
    evidence = Evidence(quote, tpm.ak.sign_as_tpm(quote), case.evidence.public)
    assert_refused(case.but(evidence=evidence), 5, "the attestation certifies no key")


def test_5_the_name_is_that_of_the_public_area(case: Case, tpm: SoftwareTpm) -> None:
    """Else an attacker shows a fixed key's Name with a public area of its own."""
    other = tls_public(tpm.key, attributes=TLS_ATTRIBUTES & ~0x400)
    assert_refused(
        case.but(evidence=dataclasses.replace(case.evidence, public=other)), 5, "not that of the public area"
    )
    missing = dataclasses.replace(case.evidence, public=None)
    assert_refused(case.but(evidence=missing), 5, "the certified key's public area is missing")
    garbage = dataclasses.replace(case.evidence, public=b"\0" * 40)
    assert_refused(case.but(evidence=garbage), 5, "malformed public area|holds no valid public key|Name algorithm")


def test_5_an_object_without_a_name_certifies_nothing(case: Case, tpm: SoftwareTpm) -> None:
    """Both Names are empty, and equal."""
    area = bytearray(tls_public(tpm.key))
    area[2:4] = b"\x00\x10"  # nameAlg TPM_ALG_NULL
    attest = attestation.attest(attestation.certified(b"", b""), extra=hmac.digest(SECRET, NONCE, "sha256"))
    evidence = Evidence(attest, tpm.ak.sign_as_tpm(attest), bytes(area))
    assert_refused(case.but(evidence=evidence), 5, "not that of the public area")


@pytest.mark.parametrize("lost", [FIXED_TPM, FIXED_PARENT, ORIGIN])
def test_5_the_key_was_born_in_its_tpm_and_stays_there(case: Case, tpm: SoftwareTpm, lost: int) -> None:
    imported = case.but(evidence=tpm.certify(public=tls_public(tpm.key, attributes=TLS_ATTRIBUTES & ~lost)))
    assert_refused(imported, 5, "the certified key is not fixed to its TPM")
    lenient = imported.but(terms=dataclasses.replace(case.terms, imported=True))
    assert lenient.judge().residency is Residency.IMPORTED
    assert case.but(terms=lenient.terms).judge().residency is Residency.FIXED


@pytest.mark.parametrize(
    "attributes",
    [TLS_ATTRIBUTES | RESTRICTED, TLS_ATTRIBUTES | DECRYPT, TLS_ATTRIBUTES | X509SIGN, TLS_ATTRIBUTES & ~SIGN],
)
def test_5_it_is_a_tls_key(case: Case, tpm: SoftwareTpm, attributes: int) -> None:
    evidence = tpm.certify(public=tls_public(tpm.key, attributes=attributes))
    for imported in (False, True):
        terms = dataclasses.replace(case.terms, imported=imported)
        assert_refused(case.but(evidence=evidence, terms=terms), 5, "the certified key is no TLS key")


def test_5_its_name_is_not_of_a_broken_hash(case: Case, tpm: SoftwareTpm) -> None:
    area = tls_public(tpm.key, name="sha1")
    name = parse_public_area(area).name
    attest = attestation.attest(attestation.certified(name), extra=hmac.digest(SECRET, NONCE, "sha256"))
    evidence = Evidence(attest, tpm.ak.sign_as_tpm(attest), area)
    assert_refused(case.but(evidence=evidence), 5, "the certified key is no TLS key")


def test_5_its_policy_is_one_that_is_expected(case: Case, tpm: SoftwareTpm) -> None:
    policy = b"p" * 32
    public = tls_public(tpm.key, attributes=TLS_ATTRIBUTES & ~USER_WITH_AUTH, policy=policy)
    with_policy = case.but(evidence=tpm.certify(public=public))
    assert_refused(with_policy, 5, f"another policy than expected: {policy.hex()}")
    only = dataclasses.replace(case.terms, policies=frozenset({policy}))
    with_policy.but(terms=only).judge()
    assert_refused(case.but(terms=only), 5, "another policy than expected: none")
    whatever = dataclasses.replace(case.terms, policies=None)
    with_policy.but(terms=whatever).judge()
    case.but(terms=whatever).judge()


def test_5_its_policy_cannot_be_gone_round(case: Case, tpm: SoftwareTpm) -> None:
    """With userWithAuth the TPM signs without asking for the policy."""
    policy = b"p" * 32
    only = dataclasses.replace(case.terms, policies=frozenset({policy}))
    around = case.but(evidence=tpm.certify(public=tls_public(tpm.key, policy=policy)), terms=only)
    assert_refused(around, 5, "can be used without its policy")


# --- checks 6 and 7


def test_6_the_certified_key_is_the_csrs(case: Case) -> None:
    assert_refused(case.but(public_key=spki(new_key().public_key())), 6, "not the request's key")


@pytest.mark.parametrize(
    "extra",
    [
        b"",
        NONCE,
        SECRET,
        hmac.digest(SECRET, bytes(32), "sha256"),  # another nonce: replayed
        hmac.digest(bytes(32), NONCE, "sha256"),  # the secret guessed
        hmac.digest(SECRET, NONCE, "sha256")[:-1],
        hmac.digest(SECRET, NONCE, "sha256") + b"\0",
    ],
)
def test_7_the_attestation_answers_this_nonce_with_this_secret(case: Case, tpm: SoftwareTpm, extra: bytes) -> None:
    assert_refused(case.but(evidence=tpm.certify(extra=extra)), 7, "answers another nonce, or the credential")


def test_7_without_an_open_challenge_nothing_passes(case: Case) -> None:
    assert_refused(case.but(challenge=None), 7, "unknown, used, expired or another client's")


def test_no_byte_of_the_evidence_may_change(case: Case) -> None:
    """Each byte of the attestation, the signature and the public area, one bit at a time."""
    evidence = case.evidence
    for part in ("attest", "signature", "public"):
        whole = getattr(evidence, part)
        for index in range(len(whole)):
            changed = bytearray(whole)
            changed[index] ^= 1 << index % 8
            wrong: dict[str, Any] = {part: bytes(changed)}
            with pytest.raises(EvidenceRefusedError) as caught:
                case.but(evidence=dataclasses.replace(evidence, **wrong)).judge()
            assert caught.value.check == 5


# --- what the CA asks


def test_a_credential_is_for_the_keys_that_were_shown(tpm: SoftwareTpm, maker: Certifier) -> None:
    certificate = maker.certify("", tpm.ek.public_key(), ek_extensions())
    asked: dict[str, Any] = {
        "ek_certificate": der(certificate),
        "ek_public": None,
        "ek_chain": [],
        "ak_public": tpm.ak.public.data,
    }
    first, blob, encrypted = make_activation(**asked)
    second, other, _ = make_activation(**asked)
    assert len(first.secret) == 32
    assert (first.secret, blob) != (second.secret, other)
    assert first.ek == ek_public(EkTemplate.ECC_P256, tpm.ek_spki)
    assert first.ek_hash == tpm.ek_hash == ek_hash(tpm.ek_spki)
    assert (first.ak, first.ek_certificate) == (tpm.ak.public, certificate)
    assert len(encrypted) > 64
    assert first.secret.hex() not in repr(first)
    assert repr(first.secret) not in repr(Challenge(NONCE, first))
    high = ek_public(EkTemplate.HIGH_ECC_P256, tpm.ek_spki)
    assert make_activation(**asked | {"ek_public": high.data, "ek_certificate": None})[0].ek == high


def test_what_nobody_can_answer_is_an_error_of_ours(tpm: SoftwareTpm, maker: Certifier) -> None:
    certificate = der(maker.certify("", tpm.ek.public_key(), ek_extensions()))
    good: dict[str, Any] = {
        "ek_certificate": certificate,
        "ek_public": None,
        "ek_chain": [],
        "ak_public": tpm.ak.public.data,
    }
    wrong: list[tuple[dict[str, object], type[Exception], str]] = [
        ({"ek_certificate": None}, EvidenceError, "neither an EK certificate nor an endorsement key"),
        ({"ek_certificate": b"x"}, EvidenceError, "damaged"),
        ({"ek_chain": [b"x"]}, EvidenceError, "damaged"),
        ({"ek_chain": [certificate] * 20}, EvidenceError, "more than 4 issuers"),
        ({"ek_public": b"x"}, PemError, "malformed public area"),
        ({"ek_public": tpm.ak.public.data}, EvidenceError, "is no storage key"),
        ({"ak_public": b"x"}, PemError, "malformed public area"),
    ]
    for change, error, message in wrong:
        with pytest.raises(error, match=message):
            make_activation(**good | change)


def test_the_verifier_has_no_side_effects(case: Case) -> None:
    """The same evidence gives the same verdict: that a nonce is used once is the caller's affair, as it says."""
    assert case.judge() == judge_evidence(
        case.evidence, challenge=case.challenge, public_key=case.public_key, terms=case.terms, now=NOW
    )
    assert Attribute.RESTRICTED in case.judge().ak.attributes
