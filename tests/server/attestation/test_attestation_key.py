"""Check 2: who vouches for the key that signs quotes, and for what."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from support import attestation
from support.device_ca import DeviceCa
from support.evidence import Certifier, der, new_root
from support.judgements import DEVICE, NOW, OTHER_TPM, TPM, Device
from support.quotes import software_key
from tpm_mtls.device_identity import EKU_ATTESTATION_KEY, POLICY_RESTRICTED, TpmIdentity
from tpm_mtls.errors import CredentialError
from tpm_mtls.structures import ek_hash, parse_public_area
from tpm_mtls_pki import profiles
from tpm_mtls_server.attestation import AttestationTrust
from tpm_mtls_server.attestation.attestation_key import Owner, check_endorsement_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.judgements import Case

FIXED, RESTRICTED, DECRYPT = 0x2, 0x10000, 0x20000


def refused(case: Case) -> str:
    """Why check 2 refuses it."""
    judgement = case.judge()
    assert (judgement.trusted, judgement.check, judgement.clock, judgement.seen) == (False, 2, None, None)
    assert judgement.hint
    return judgement.reason


def test_a_key_with_our_ca_s_certificate_passes(good: Case) -> None:
    assert good.judge().trusted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"usages": [ExtendedKeyUsageOID.CLIENT_AUTH]}, "the certificate is not for attestation keys"),
        ({"policies": []}, "does not say that the key was verified"),
        ({"names": [x509.DNSName(DEVICE)]}, "names no TPM, or something else beside it"),
        ({"names": [x509.DNSName(DEVICE), *TPM.names()]}, "names no TPM, or something else beside it"),
        ({"tpm": OTHER_TPM}, "the attestation key and the TLS key are in two different TPMs"),
        ({"name": "sensor-18"}, "belongs to another device than sensor-17"),
        ({"public_key": software_key().key.public_key()}, "certificate is for another key"),
        ({"ends": NOW - timedelta(minutes=1)}, "the certificate expired"),
        ({"begins": NOW + timedelta(minutes=1)}, "the certificate is valid only from"),
    ],
)
def test_a_certificate_that_is_wrong_in_one_place_is_refused(
    machine: Device, good: Case, changes: dict[str, Any], reason: str
) -> None:
    assert reason in refused(good.sent(certificate=machine.certificate(**changes)))


@pytest.fixture(scope="module")
def maker() -> Certifier:
    """A CA that certifies anything."""
    return new_root()


ALTERNATIVE = (x509.SubjectAlternativeName(TPM.names()), False)
USAGE = (x509.ExtendedKeyUsage([EKU_ATTESTATION_KEY]), False)
VERIFIED = (x509.CertificatePolicies([x509.PolicyInformation(POLICY_RESTRICTED, None)]), False)


@pytest.mark.parametrize(
    ("name", "extensions", "reason"),
    [
        (DEVICE, [ALTERNATIVE, USAGE], "does not say that the key was verified"),
        (DEVICE, [USAGE, VERIFIED], "the certificate names no TPM"),
        (DEVICE, [ALTERNATIVE, VERIFIED], "does not lead to the trust anchor"),
        ("", [ALTERNATIVE, USAGE, VERIFIED], "names no single device"),
    ],
)
def test_a_certificate_that_lacks_something_is_refused(
    maker: Certifier, machine: Device, name: str, extensions: list[Any], reason: str
) -> None:
    public_key = machine.ak.key.public_key()
    trust = AttestationTrust([maker.certificate])
    whole = maker.certify(DEVICE, public_key, [ALTERNATIVE, USAGE, VERIFIED])
    found = trust.certificate(der(whole), now=NOW)
    assert (found.tpm, found.peer.issuer_key) == (TPM, None), "a CRL is then found by the issuer's name alone"
    with pytest.raises(CredentialError, match=reason):
        trust.certificate(der(maker.certify(name, public_key, extensions)), now=NOW)


def test_a_certificate_of_another_ca_is_refused(machine: Device, good: Case, tmp_path: Path) -> None:
    other = dataclasses.replace(machine, ca=DeviceCa(tmp_path))
    assert "does not lead to the trust anchor" in refused(good.sent(certificate=other.certificate()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda der: der[:-1], "the certificate is malformed"),
        (lambda _: b"", "the certificate is malformed"),
        (lambda der: der + bytes(4096), "larger than 4096 bytes"),
        (lambda der: der[:-1] + bytes([der[-1] ^ 1]), "does not lead to the trust anchor"),
        (lambda der: der.replace(b"Issuing", b"Issui\xff\xfe"), "a name in the certificate is malformed"),
        (lambda der: der.replace(b"sensor-17", b"sensor-\xff\xfe"), "does not lead to the trust anchor"),
    ],
)
def test_a_damaged_certificate_is_refused(good: Case, change: Callable[[bytes], bytes], reason: str) -> None:
    assert good.evidence.certificate is not None
    assert reason in refused(good.sent(certificate=change(good.evidence.certificate)))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (attestation.AK_ATTRIBUTES & ~RESTRICTED, "the attestation key would sign anything"),
        (attestation.AK_ATTRIBUTES | DECRYPT, "the attestation key would sign anything"),
        (attestation.AK_ATTRIBUTES & ~FIXED, "the attestation key is not fixed to a TPM"),
    ],
)
def test_a_key_that_is_no_attestation_key_is_refused_whoever_vouches_for_it(
    machine: Device, good: Case, attributes: int, reason: str
) -> None:
    public = parse_public_area(attestation.public_area(machine.ak.key, machine.ak.scheme, attributes=attributes))
    case = good.sent(attestation_key=public.data)
    assert reason in refused(case)
    assert reason in refused(case.known(enrolled=frozenset({public.name})))


def test_a_malformed_public_area_is_refused(good: Case) -> None:
    assert "malformed public area" in refused(good.sent(attestation_key=good.evidence.attestation_key[:-1]))
    assert "malformed public area" in refused(good.sent(attestation_key=b""))


def test_an_operator_s_word_does_without_certificate_and_tpm(machine: Device, good: Case) -> None:
    alone = good.sent(certificate=None)
    name = machine.ak.public.name
    assert alone.known(tpm=None, revocation=None, enrolled=frozenset({b"another", name})).judge().trusted
    assert f"no operator enrolled {name.hex()}" in refused(alone)
    assert "nobody vouches" in refused(alone.known(enrolled=frozenset({software_key().public.name})))


def test_another_key_than_the_enrolled_one_may_have_a_certificate(good: Case) -> None:
    assert good.known(enrolled=frozenset({software_key().public.name})).judge().trusted


def test_a_tls_certificate_without_a_tpm_goes_with_no_certified_attestation_key(good: Case) -> None:
    assert "the TLS certificate names no TPM" in refused(good.known(tpm=None))


def test_an_endorsement_key_that_is_sent_along_is_that_of_the_tpm(good: Case) -> None:
    mine, other = (parse_public_area(attestation.public_area(software_key().key, "ecdsa-sha256")) for _ in range(2))
    assert mine.spki is not None
    of_this_tpm = good.known(tpm=TpmIdentity(bytes.fromhex(ek_hash(mine.spki))))
    check_endorsement_key(mine.data, owner=Owner(DEVICE, of_this_tpm.facts.tpm), trust=good.facts.trust)
    check_endorsement_key(None, owner=Owner(DEVICE, TPM), trust=good.facts.trust)
    assert "the endorsement key is another TPM's" in refused(good.sent(endorsement_key=other.data))
    assert "malformed public area" in refused(good.sent(endorsement_key=mine.data[:-1]))


def test_a_revoked_certificate_is_refused_and_one_that_nobody_knows_about(machine: Device, good: Case) -> None:
    assert good.evidence.certificate is not None
    serial = x509.load_der_x509_certificate(good.evidence.certificate).serial_number
    assert "was revoked" in refused(good.known(revocation=machine.revocation(serial)))
    assert good.known(revocation=machine.revocation(serial + 1)).judge().trusted
    assert "no fresh CRL" in refused(good.known(revocation=None))
    later = dataclasses.replace(good, now=NOW + timedelta(days=2))
    assert later.facts.nonce is not None
    nonce = dataclasses.replace(later.facts.nonce, expires=later.now)
    assert "no fresh CRL" in refused(later.known(nonce=nonce))


def test_another_policy_written_into_the_public_area_is_no_other_key(machine: Device, good: Case) -> None:
    """A certificate vouches for the key alone: its Name is only claimed, and the clock must not start anew by it."""
    public = attestation.public_area(machine.ak.key, machine.ak.scheme, policy=bytes(32))
    first, second = good.judge(), good.sent(attestation_key=public).judge()
    assert parse_public_area(public).name != machine.ak.public.name
    assert second.trusted
    assert first.clock == second.clock
    replayed = good.sent(attestation_key=public).known(clock=first.clock).judge()
    assert (replayed.check, replayed.reason) == (7, "the TPM's clock stood still without a reset")


def test_a_remembered_certificate_still_expires(machine: Device) -> None:
    trust = machine.trust()
    der = machine.certificate(ends=NOW + timedelta(days=1))
    found = trust.certificate(der, now=NOW)
    assert trust.certificate(der, now=NOW + timedelta(days=1)) is found
    with pytest.raises(CredentialError, match="expired"):
        trust.certificate(der, now=NOW + timedelta(days=1, seconds=1))
    with pytest.raises(CredentialError, match="valid only from"):
        trust.certificate(der, now=NOW - timedelta(days=2))


def test_it_does_not_remember_without_end(machine: Device) -> None:
    trust = AttestationTrust([machine.ca.root, machine.ca.issuing], remembered=2)
    ders = [machine.certificate() for _ in range(3)]
    found = [trust.certificate(der, now=NOW) for der in ders]
    assert trust.certificate(ders[2], now=NOW) is found[2]
    assert trust.certificate(ders[0], now=NOW) is not found[0]


def test_an_expired_ca_does_not_matter_beside_one_of_the_same_name(machine: Device) -> None:
    expired = new_root("Test Root", start=NOW - timedelta(days=9), end=NOW - timedelta(days=1)).certificate
    der, ca = machine.certificate(), machine.ca
    assert AttestationTrust([expired, ca.root, ca.issuing]).certificate(der, now=NOW).device == DEVICE
    with pytest.raises(CredentialError, match="the CA certificate CN=Test Root expired"):
        AttestationTrust([expired, ca.issuing]).certificate(der, now=NOW)


def test_what_our_ca_issues_is_understood(machine: Device) -> None:
    """By the profile of the CA itself; its TLS certificates for the same TPM are no attestation keys'."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    root = profiles.build_root("Fleet", keys[0], now=NOW)
    issuing = profiles.build_issuing("Fleet", keys[1].public_key(), profiles.Issuer(root, keys[0], None), now=NOW)
    issuer = profiles.Issuer(issuing, keys[1], None)
    subject = profiles.Subject(name=DEVICE, dns=(), hardware=TPM.names(), policies=(POLICY_RESTRICTED,))
    trust, public_key = AttestationTrust([root, issuing]), machine.ak.key.public_key()
    certificate = profiles.build_leaf(profiles.ATTESTATION, subject, public_key, issuer, now=NOW)
    found = trust.certificate(der(certificate), now=NOW)
    assert (found.device, found.tpm, found.key) == (DEVICE, TPM, machine.ak.public.spki)
    with pytest.raises(CredentialError, match="is not for attestation keys"):
        trust.certificate(der(profiles.build_leaf(profiles.DEVICE, subject, public_key, issuer, now=NOW)), now=NOW)
