"""What certificates and CRLs contain, as openssl sees them too."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.authority import CRL_URL, NOW, PASSPHRASE, new_key
from tpm_mtls.certificates import Purpose, check_chain
from tpm_mtls.device_identity import (
    EKU_OPERATOR,
    POLICY_FIXED,
    POLICY_RESIDENT,
    POLICY_RESTRICTED,
    TpmIdentity,
    tpm_identity,
)
from tpm_mtls.device_names import device_name
from tpm_mtls.errors import CertificateExpiredError, CredentialError, CsrRefusedError, StateError
from tpm_mtls_pki import crl, records
from tpm_mtls_pki.cli_revocation import sign_crl
from tpm_mtls_pki.csr import CheckedCsr
from tpm_mtls_pki.profiles import ATTESTATION, DEVICE, ISSUING_LIFETIME, OPERATOR, SERVER, Subject, build_leaf
from tpm_mtls_pki.records import REASONS

if TYPE_CHECKING:
    from pathlib import Path

    from support.authority import MovableClock
    from tpm_mtls_pki.issuance import Registrar
    from tpm_mtls_pki.profiles import Issuer, LeafKey, Profile

SUBJECTS = {
    "device": Subject.device("sensor-1.example"),
    "server": Subject("h.example", ("h.example", "www.example"), (ipaddress.ip_address("::1"),)),
    "operator": Subject.operator("alice@example.com"),
}


def issue(registrar: Registrar, name: str = "sensor-1", key: LeafKey | None = None) -> x509.Certificate:
    checked = CheckedCsr(key or new_key().public_key())
    return registrar.issue(DEVICE, Subject.device(name), checked).certificate


def revoke(registrar: Registrar, certificate: x509.Certificate, reason: str = "unspecified") -> None:
    with registrar.authority.database.writing() as connection:
        record = records.find(connection, records.serial_text(certificate))
        assert record
        records.revoke(connection, record, reason=reason, now=registrar.clock())


def verify(registrar: Registrar, certificate: x509.Certificate, *arguments: str) -> str:
    folder = registrar.authority.folder
    (folder / "leaf.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    done = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", *arguments),
            *("-CAfile", folder / "root.pem", "-untrusted", folder / "issuing.pem", folder / "leaf.pem"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("profile", "usages", "purpose"),
    [
        (DEVICE, [ExtendedKeyUsageOID.CLIENT_AUTH], "sslclient"),
        (SERVER, [ExtendedKeyUsageOID.SERVER_AUTH], "sslserver"),
        (OPERATOR, [ExtendedKeyUsageOID.CLIENT_AUTH, EKU_OPERATOR], "sslclient"),
    ],
)
@pytest.mark.parametrize("key", [new_key(), rsa.generate_private_key(65537, 2048)], ids=["ec", "rsa"])
def test_a_leaf_has_the_extensions_of_its_profile_and_no_others(
    registrar: Registrar, profile: Profile, usages: list[x509.ObjectIdentifier], purpose: str, key: rsa.RSAPrivateKey
) -> None:
    subject = SUBJECTS[profile.name]
    certificate = registrar.issue(profile, subject, CheckedCsr(key.public_key())).certificate
    extensions = {type(each.value): (each.critical, each.value) for each in certificate.extensions}
    assert {kind.__name__: critical for kind, (critical, _) in extensions.items()} == {
        "BasicConstraints": True,
        "KeyUsage": True,
        "ExtendedKeyUsage": False,
        "SubjectAlternativeName": False,
        "SubjectKeyIdentifier": False,
        "AuthorityKeyIdentifier": False,
        "CRLDistributionPoints": False,
    }
    assert extensions[x509.BasicConstraints][1] == x509.BasicConstraints(ca=False, path_length=None)
    assert list(extensions[x509.ExtendedKeyUsage][1]) == usages  # type: ignore[call-overload]
    text = str(extensions[x509.CRLDistributionPoints][1])
    assert f"{CRL_URL}/issuing.crl" in text
    names = extensions[x509.SubjectAlternativeName][1]
    assert isinstance(names, x509.SubjectAlternativeName)
    assert tuple(names.get_values_for_type(x509.DNSName)) == subject.dns
    assert tuple(names.get_values_for_type(x509.IPAddress)) == subject.addresses
    assert tuple(names.get_values_for_type(x509.RFC822Name)) == subject.mail
    assert ": OK" in verify(registrar, certificate, "-purpose", purpose)
    other = {"sslclient": "sslserver", "sslserver": "sslclient"}[purpose]
    assert "nsuitable certificate purpose" in verify(registrar, certificate, "-purpose", other)


def test_openssl_reads_an_operators_certificate(registrar: Registrar) -> None:
    subject = Subject.operator("alice@example.com")
    certificate = registrar.issue(OPERATOR, subject, CheckedCsr(new_key().public_key())).certificate
    (registrar.authority.folder / "x.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    text = subprocess.run(
        ["openssl", "x509", "-in", registrar.authority.folder / "x.pem", "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Subject: CN=alice@example.com" in text.replace("CN = ", "CN=")  # without blanks from OpenSSL 3.2 on
    assert "TLS Web Client Authentication, 2.25.92675513810322693390180826212303619048" in text
    assert "email:alice@example.com" in text


TPM = TpmIdentity(bytes(range(32)))
VERIFIED = (POLICY_RESIDENT, POLICY_FIXED)


def ldevid(registrar: Registrar, policies: tuple[x509.ObjectIdentifier, ...] = VERIFIED) -> x509.Certificate:
    subject = Subject.device("sensor-1", hardware=TPM.names(), policies=policies)
    return build_leaf(DEVICE, subject, new_key().public_key(), registrar.issuer, now=NOW)


def test_a_device_with_a_verified_tpm_gets_an_ldevid(registrar: Registrar) -> None:
    """IEEE 802.1AR-2018, 8: the TPM's identity beside the name; and what was verified."""
    certificate = ldevid(registrar)
    assert device_name(certificate) == "sensor-1"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [type(name) for name in names] == [x509.DNSName, x509.OtherName, x509.OtherName]
    assert tpm_identity(names) == TPM
    policies = certificate.extensions.get_extension_for_class(x509.CertificatePolicies)
    assert not policies.critical
    assert [each.policy_identifier.dotted_string for each in policies.value] == ["2.23.133.11.1.1", "2.23.133.11.1.2"]
    assert ": OK" in verify(registrar, certificate, "-purpose", "sslclient")


def test_openssl_reads_the_names_of_an_ldevid(registrar: Registrar) -> None:
    (registrar.authority.folder / "x.der").write_bytes(ldevid(registrar).public_bytes(Encoding.DER))
    text = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER", "-in", registrar.authority.folder / "x.der"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (names,) = re.findall(r"Subject Alternative Name\n.*\[HEX DUMP\]:([0-9A-F]+)\n", text)
    assert "06082B06010505070804" in names
    assert "06082B06010505070803" in names
    assert f"060567810501020420{TPM.digest.hex().upper()}" in names
    assert TPM.digest.hex().encode().hex().upper() in names


def test_a_policy_counts_for_whoever_asks_for_it(registrar: Registrar) -> None:
    """RFC 5280, 6.1: the issuing CA must be allowed to assert it."""
    wanted = ("-policy_check", "-explicit_policy", "-policy", "2.23.133.11.1.2")
    assert ": OK" in verify(registrar, ldevid(registrar), *wanted)
    for policies in ((), (POLICY_RESIDENT,)):
        assert "no explicit policy" in verify(registrar, ldevid(registrar, policies), *wanted)


def test_an_attestation_key_gets_a_certificate_for_that_only(registrar: Registrar) -> None:
    subject = Subject.device("sensor-1", hardware=TPM.names(), policies=(POLICY_RESTRICTED,))
    certificate = build_leaf(ATTESTATION, subject, new_key().public_key(), registrar.issuer, now=NOW)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [each.dotted_string for each in usages] == ["2.23.133.8.3"]
    policies = certificate.extensions.get_extension_for_class(x509.CertificatePolicies).value
    assert [each.policy_identifier.dotted_string for each in policies] == ["2.23.133.11.1.3"]
    assert ": OK" in verify(registrar, certificate)
    for purpose in ("sslclient", "sslserver"):
        assert "nsuitable certificate purpose" in verify(registrar, certificate, "-purpose", purpose)
    with pytest.raises(CredentialError, match="is not for TLS clients"):
        check_chain(
            certificate, [registrar.authority.issuing], [registrar.authority.root], now=NOW, purpose=Purpose.CLIENT
        )


def test_the_only_key_usage_is_to_sign(registrar: Registrar) -> None:
    certificate = issue(registrar)
    (registrar.authority.folder / "x.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    text = subprocess.run(
        ["openssl", "x509", "-in", registrar.authority.folder / "x.pem", "-noout", "-ext", "keyUsage"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert text == "X509v3 Key Usage: critical\n    Digital Signature\n"


def test_serial_numbers_are_random_and_have_20_bytes(registrar: Registrar) -> None:
    key = new_key().public_key()
    serials = {build_leaf(DEVICE, Subject.device("a"), key, registrar.issuer, now=NOW).serial_number for _ in range(20)}
    assert len(serials) == 20
    assert {(serial.bit_length() + 8) // 8 for serial in serials} == {20}


def test_validity_begins_a_little_earlier_and_ends_after_90_days(registrar: Registrar) -> None:
    certificate = issue(registrar)
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=90)


def test_no_leaf_outlives_its_issuer(registrar: Registrar, clock: MovableClock) -> None:
    clock.now = NOW + ISSUING_LIFETIME - timedelta(days=1)
    assert issue(registrar).not_valid_after_utc == registrar.issuer.certificate.not_valid_after_utc
    clock.now += timedelta(days=2)
    with pytest.raises(CertificateExpiredError, match="the issuing CA's certificate expired"):
        issue(registrar)


def test_a_key_is_for_one_subject(registrar: Registrar) -> None:
    key = new_key().public_key()
    assert issue(registrar, "a", key)
    assert issue(registrar, "a", key)
    with pytest.raises(CsrRefusedError, match="key-of-another"):
        issue(registrar, "b", key)
    with pytest.raises(CsrRefusedError, match="key-of-the-ca"):
        issue(registrar, "a", registrar.issuer.key.public_key())


@pytest.mark.parametrize("reason", REASONS)
def test_openssl_refuses_a_revoked_certificate_by_our_crl(registrar: Registrar, reason: str) -> None:
    certificate, other = issue(registrar), issue(registrar, "sensor-2")
    folder = registrar.authority.folder
    lists = ["-crl_check_all", "-CRLfile", str(folder / "crl.pem"), "-CRLfile", str(folder / "root.crl.pem")]
    assert ": OK" in verify(registrar, certificate, *lists)
    revoke(registrar, certificate, reason)
    sign_crl(registrar.authority, PASSPHRASE)
    assert "certificate revoked" in verify(registrar, certificate, *lists)
    assert ": OK" in verify(registrar, other, *lists)
    entry = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())[0]
    reasons = [each.value for each in entry.extensions]
    assert reasons == ([] if reason == "unspecified" else [x509.CRLReason(REASONS[reason])])


def test_a_certificate_is_revoked_once(registrar: Registrar) -> None:
    certificate = issue(registrar)
    revoke(registrar, certificate)
    with pytest.raises(StateError, match="is revoked already"):
        revoke(registrar, certificate)


def test_a_crl_has_a_growing_number_and_an_issuer(registrar: Registrar) -> None:
    numbers = []
    for _ in range(2):
        sign_crl(registrar.authority, PASSPHRASE)
        found = x509.load_pem_x509_crl((registrar.authority.folder / "crl.pem").read_bytes())
        numbers.append(found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
        identifier = found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        key = x509.SubjectKeyIdentifier.from_public_key(registrar.issuer.key.public_key())
        assert identifier == key.digest
        lifetime = (found.next_update_utc or NOW) - found.last_update_utc
        assert lifetime == timedelta(days=7, minutes=5)
    assert numbers == [2, 3]


def sign(registrar: Registrar, issuer: Issuer) -> x509.CertificateRevocationList:
    with registrar.authority.database.writing() as connection:
        return crl.issue_crl(connection, "issuing", issuer, lifetime=crl.ISSUING_LIFETIME, now=registrar.clock())


def test_a_revoked_certificate_stays_listed_for_a_while_after_its_end(
    registrar: Registrar, clock: MovableClock
) -> None:
    revoke(registrar, issue(registrar))
    for days, entries in ((0, 1), (100, 1), (21, 0)):
        clock.move(days=days)
        assert len(sign(registrar, registrar.issuer)) == entries


def test_a_crl_is_due_at_half_time_and_after_a_revocation(registrar: Registrar, clock: MovableClock) -> None:
    def is_due() -> bool:
        with registrar.authority.database.reading() as connection:
            return crl.is_due(connection, now=clock())

    assert not is_due()
    clock.move(days=3.5)
    assert is_due()
    sign(registrar, registrar.issuer)
    assert not is_due()
    revoke(registrar, issue(registrar))
    assert is_due()
    sign(registrar, registrar.issuer)
    assert not is_due()


def test_a_crl_lost_between_store_and_file_is_made_good(registrar: Registrar) -> None:
    path = registrar.authority.folder / "crl.pem"
    newest = sign(registrar, registrar.issuer)
    assert path.read_bytes() != newest.public_bytes(Encoding.PEM)
    crl.publish(registrar.authority.database, "issuing", path)
    assert path.read_bytes() == newest.public_bytes(Encoding.PEM)
    before = path.stat().st_mtime_ns
    crl.publish(registrar.authority.database, "issuing", path)
    assert path.stat().st_mtime_ns == before


def test_without_a_url_there_is_no_distribution_point(registrar: Registrar, tmp_path: Path) -> None:
    from tpm_mtls_pki.authority import Settings, create_authority, open_authority
    from tpm_mtls_pki.issuance import Registrar as Another

    create_authority(
        tmp_path / "plain", Settings(name="Plain"), passphrase=PASSPHRASE, root_passphrase=PASSPHRASE, now=NOW
    )
    with open_authority(tmp_path / "plain") as authority:
        plain = Another(authority, authority.unlock(PASSPHRASE), registrar.clock)
        for certificate in (issue(plain), authority.issuing):
            with pytest.raises(x509.ExtensionNotFound):
                certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
