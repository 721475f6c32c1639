"""Reading certificates strictly, and checking chains, dates and keys: each success, then the same with one fault."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls import certificates, device_names
from tpm_mtls.certificates import Purpose, check_chain
from tpm_mtls.errors import (
    CertificateExpiredError,
    CertificateMismatchError,
    CertificateNotYetValidError,
    CredentialError,
    CsrRefusedError,
    PemError,
    StorageError,
    UsageError,
)
from tpm_mtls.files import PEM_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)


class Signer:
    """A CA, or a leaf, whose every field a test can choose."""

    def __init__(
        self,
        name: str,
        issuer: Signer | None = None,
        *,
        ca: bool = True,
        begin: datetime = NOW - DAY,
        end: datetime = NOW + DAY,
        usages: Sequence[x509.ObjectIdentifier] = (),
        names: Sequence[x509.GeneralName] = (),
        path_length: int | None = None,
        extra: tuple[x509.ExtensionType, bool] | None = None,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer or self
        builder = x509.CertificateBuilder().subject_name(self.name).issuer_name(signer.name)
        builder = builder.public_key(self.key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(begin).not_valid_after(end)
        for extension, critical in (*self._extensions(signer, path_length, ca=ca), *([extra] if extra else [])):
            builder = builder.add_extension(extension, critical=critical)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    def _extensions(self, signer: Signer, path_length: int | None, *, ca: bool) -> list[tuple[Any, bool]]:
        usage = dict.fromkeys(
            ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"], False
        )
        usage |= {"digital_signature": not ca, "key_cert_sign": ca, "crl_sign": ca, "decipher_only": False}
        return [
            (x509.BasicConstraints(ca=ca, path_length=path_length), True),
            (x509.KeyUsage(**usage), True),
            (x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), False),
        ]


CLIENT = [ExtendedKeyUsageOID.CLIENT_AUTH]
ROOT = Signer("root")
ISSUING = Signer("issuing", ROOT, path_length=0)
DEVICE = x509.DNSName("sensor-1.example")
LEAF = Signer("leaf", ISSUING, ca=False, usages=CLIENT, names=[DEVICE])


def check(
    leaf: Signer = LEAF,
    intermediates: Sequence[Signer] = (ISSUING,),
    anchors: Sequence[Signer] = (ROOT,),
    *,
    now: datetime = NOW,
    purpose: Purpose = Purpose.CLIENT,
) -> tuple[x509.Certificate, ...]:
    return check_chain(
        leaf.certificate,
        [each.certificate for each in intermediates],
        [each.certificate for each in anchors],
        now=now,
        purpose=purpose,
    )


def test_a_chain_leads_from_leaf_to_anchor() -> None:
    assert check() == (LEAF.certificate, ISSUING.certificate, ROOT.certificate)


def test_a_malformed_issuer_s_name_is_refused() -> None:
    """It is parsed only when somebody looks at it."""
    der = LEAF.certificate.public_bytes(Encoding.DER).replace(b"issuing", b"issui\xff\xfe", 1)
    leaf = x509.load_der_x509_certificate(der)
    with pytest.raises(CredentialError, match="a name in the certificate is malformed"):
        check_chain(leaf, [ISSUING.certificate], [ROOT.certificate], now=NOW, purpose=Purpose.CLIENT)


def test_other_certificates_beside_do_not_matter() -> None:
    stranger = Signer("stranger", end=NOW - timedelta(hours=1))
    assert len(check(intermediates=(stranger, ISSUING, LEAF), anchors=(stranger, ROOT))) == 3


def test_an_issuing_ca_may_be_the_anchor() -> None:
    assert len(check(intermediates=(), anchors=(ISSUING,))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intermediates": ()}, "nothing there issued it"),
        ({"anchors": (Signer("another root"),)}, "nothing there issued it"),
        ({"anchors": (Signer("root"),)}, "signature does not match"),
        ({"intermediates": (Signer("issuing", ROOT),)}, "signature does not match"),
        ({"anchors": ()}, "empty"),
    ],
)
def test_a_chain_that_leads_nowhere_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CredentialError, match=f"does not lead to the trust anchor: .*{message}"):
        check(**options)


def test_dates_are_checked_both_ends_included() -> None:
    assert check(now=LEAF.certificate.not_valid_after_utc)
    assert check(now=LEAF.certificate.not_valid_before_utc)
    with pytest.raises(CertificateExpiredError, match="the certificate expired at 2026-11-23 12:00:00 UTC"):
        check(now=NOW + DAY + timedelta(seconds=1))
    with pytest.raises(CertificateNotYetValidError, match="valid only from 2026-11-21 12:00:00 UTC, and the clock"):
        check(now=NOW - DAY - timedelta(seconds=1))


def test_a_clock_at_1970_is_named_as_the_fault() -> None:
    with pytest.raises(CertificateNotYetValidError, match="the clock says 1970-01-01") as caught:
        check(now=datetime(1970, 1, 1, tzinfo=UTC))
    assert "set the clock" in caught.value.hint


@pytest.mark.parametrize("which", ["issuing", "root"])
def test_dates_of_the_cas_count_too(which: str) -> None:
    ended = {"end": NOW - timedelta(hours=1)}
    root = Signer("r", **(ended if which == "root" else {}))  # type: ignore[arg-type]
    issuing = Signer("i", root, **(ended if which == "issuing" else {}))  # type: ignore[arg-type]
    leaf = Signer("leaf", issuing, ca=False, usages=CLIENT)
    with pytest.raises(CertificateExpiredError, match=f"the CA certificate CN={which[0]} expired"):
        check(leaf, (issuing,), (root,))


def test_a_certificate_has_its_purpose() -> None:
    server = Signer("s", ISSUING, ca=False, usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    assert check(server, purpose=Purpose.SERVER)
    with pytest.raises(CredentialError, match="not for TLS clients"):
        check(server)
    with pytest.raises(CredentialError, match="not for TLS servers"):
        check(purpose=Purpose.SERVER)
    with pytest.raises(CredentialError, match="trust anchor"):
        check(Signer("none", ISSUING, ca=False))


def test_a_ca_limited_to_servers_certifies_no_clients() -> None:
    limited = Signer("limited", ROOT, usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    leaf = Signer("leaf", limited, ca=False, usages=[*CLIENT, ExtendedKeyUsageOID.SERVER_AUTH])
    assert check(leaf, (limited,), purpose=Purpose.SERVER)
    with pytest.raises(CredentialError, match="trust anchor"):
        check(leaf, (limited,))


def test_a_ca_certificate_is_no_leaf() -> None:
    with pytest.raises(CredentialError, match="the leaf is a CA certificate"):
        check(Signer("ca", ISSUING, ca=True, usages=CLIENT))


def test_a_leaf_issues_nothing() -> None:
    with pytest.raises(CredentialError, match="trust anchor"):
        check(Signer("below", LEAF, ca=False, usages=CLIENT), (LEAF, ISSUING))


def test_the_path_length_holds() -> None:
    below = Signer("below", ISSUING)
    with pytest.raises(CredentialError, match="trust anchor"):
        check(Signer("leaf", below, ca=False, usages=CLIENT), (below, ISSUING))


def test_an_unknown_critical_extension_is_refused() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    assert check(Signer("leaf", ISSUING, ca=False, usages=CLIENT, extra=(unknown, False)))
    with pytest.raises(CredentialError, match="trust anchor"):
        check(Signer("leaf", ISSUING, ca=False, usages=CLIENT, extra=(unknown, True)))


def test_a_certificate_belongs_to_one_key() -> None:
    public_key = certificates.spki(LEAF.key.public_key())
    certificates.check_matches(LEAF.certificate, public_key)
    assert certificates.find_certificate([ROOT.certificate, LEAF.certificate], public_key) == LEAF.certificate
    with pytest.raises(CertificateMismatchError, match="belongs to another key"):
        certificates.check_matches(ROOT.certificate, public_key)
    with pytest.raises(CertificateMismatchError, match="no certificate is for this key"):
        certificates.find_certificate([ROOT.certificate], public_key)


def test_the_device_is_the_one_alternative_name() -> None:
    assert device_names.device_name(LEAF.certificate) == "sensor-1.example"


@pytest.mark.parametrize(
    "names",
    [
        [],
        [DEVICE, x509.DNSName("other.example")],
        [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
        [x509.DNSName("*.example")],
        [x509.DNSName("Upper.example")],
        [x509.DNSName("")],
    ],
)
def test_any_other_set_of_names_names_no_device(names: list[x509.GeneralName]) -> None:
    with pytest.raises(CredentialError, match="names no"):
        device_names.device_name(Signer("leaf", ISSUING, ca=False, names=names).certificate)


SAN = x509.SubjectAlternativeName.oid
DER = LEAF.certificate.public_bytes(Encoding.DER)
UNREADABLE_EXTENSIONS = {
    "malformed": Signer("leaf", ISSUING, ca=False, extra=(x509.UnrecognizedExtension(SAN, b"\x05\x00"), False)),
    "x400Address": Signer(
        "leaf", ISSUING, ca=False, extra=(x509.UnrecognizedExtension(SAN, b"\x30\x02\xa3\x00"), False)
    ),
    "twice": x509.load_der_x509_certificate(DER.replace(b"\x55\x1d\x25", b"\x55\x1d\x11")),  # extendedKeyUsage
}


@pytest.mark.parametrize("kind", UNREADABLE_EXTENSIONS)
def test_extensions_that_cannot_be_read_are_a_credential_error(kind: str) -> None:
    found = UNREADABLE_EXTENSIONS[kind]
    leaf = found if isinstance(found, x509.Certificate) else found.certificate
    with pytest.raises(CredentialError, match="extensions are malformed"):
        device_names.device_name(leaf)
    with pytest.raises(CredentialError, match="trust anchor"):
        check_chain(leaf, [ISSUING.certificate], [ROOT.certificate], now=NOW, purpose=Purpose.CLIENT)


def test_a_certificate_of_an_unknown_version_is_damaged() -> None:
    damaged = DER.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(damaged) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(PemError, match="damaged certificate"):
        certificates.parse_certificates(pem, name="f")


@pytest.mark.parametrize("name", ["a", "sensor-17.example", "0.1", "a" * 63, "x" * 31 + "." + "y" * 32])
def test_device_names_are_host_names(name: str) -> None:
    assert device_names.check_device_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "-a", "a-", "A", "a_b", "*.a", "a b", "ä", "a\n", "a" * 64, "a." * 32 + "a"]
)
def test_other_texts_are_no_device_names(name: str) -> None:
    with pytest.raises(UsageError, match="not a device name"):
        device_names.check_device_name(name)


def test_certificates_are_read_in_the_files_order(tmp_path: Path) -> None:
    chain = (LEAF.certificate, ISSUING.certificate)
    file = tmp_path / "chain.pem"
    file.write_bytes(b"a comment\n" + certificates.certificates_pem(chain))
    assert certificates.load_certificates(file) == chain
    with pytest.raises(StorageError, match="cannot read"):
        certificates.load_certificates(tmp_path / "none")


PEM = LEAF.certificate.public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no certificates"),
        (b"<html>", "holds no certificates"),
        (PEM[:-20], "cut off or damaged"),
        (PEM[:100] + PEM, "cut off or damaged"),
        (PEM[:100] + b"!" + PEM[100:], "cut off or damaged"),
        (PEM.replace(b"M", b"N"), "damaged certificate"),
        (PEM * 17, "holds 17 certificates"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + PEM, "holds a private key"),
        (PEM + b" " * PEM_LIMIT, "larger than 65536 bytes"),
    ],
)
def test_damaged_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(PemError, match=message):
        certificates.parse_certificates(data, name="x.pem")


@given(st.integers(0, len(PEM) - 1), st.binary(min_size=1, max_size=3))
def test_damaged_pem_raises_our_errors_only(at: int, wrong: bytes) -> None:
    try:
        (found,) = certificates.parse_certificates(PEM[:at] + wrong + PEM[at + len(wrong) :], name="x.pem")
        certificates.certificate_spki(found)
    except PemError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_are_a_csr_or_refused(data: bytes) -> None:
    with pytest.raises(CsrRefusedError, match="no certificate request"):
        certificates.parse_csr(data)
    with pytest.raises(CsrRefusedError, match="no certificate request"):
        certificates.parse_csr(b"-----BEGIN CERTIFICATE REQUEST-----\n" + data)


def test_a_version_that_nobody_knows_is_our_error() -> None:
    """`cryptography` has an error of its own for it, which is no ValueError."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    der = csr.public_bytes(Encoding.DER)
    assert der.count(b"\x02\x01\x00\x30\x00") == 1
    with pytest.raises(CsrRefusedError, match="no certificate request"):
        certificates.parse_csr(der.replace(b"\x02\x01\x00\x30\x00", b"\x02\x01\x05\x30\x00"))
    good = trustme.CA().cert_pem.bytes()
    version = x509.load_pem_x509_certificate(good).public_bytes(Encoding.DER)
    assert version.count(b"\xa0\x03\x02\x01\x02") == 1
    body = base64.encodebytes(version.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"))
    with pytest.raises(PemError, match="damaged certificate"):
        certificates.parse_certificates(
            b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n", name="it"
        )


def test_a_csr_is_capped() -> None:
    with pytest.raises(CsrRefusedError, match="larger than 16384 bytes"):
        certificates.parse_csr(bytes(certificates.CSR_LIMIT + 1))


def test_trustme_chains_are_accepted() -> None:
    """Another CA's profile: critical subjectAltName, no CRL, and more purposes than one."""
    ca = trustme.CA()
    child = ca.create_child_ca()
    leaf, *others = certificates.parse_certificates(
        b"".join(pem.bytes() for pem in child.issue_cert("h.example").cert_chain_pems), name="trustme"
    )
    (anchor,) = certificates.parse_certificates(ca.cert_pem.bytes(), name="trustme")
    assert check_chain(leaf, others, [anchor], now=datetime.now(UTC), purpose=Purpose.SERVER)
