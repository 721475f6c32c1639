"""Who is calling, by the certificate alone: a device or an operator, never both."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from support.device_ca import DAY, DeviceCa, leaf
from tpm_mtls.device_identity import EKU_ATTESTATION_KEY, EKU_OPERATOR, TpmIdentity
from tpm_mtls.errors import CertificateExpiredError, CertificateNotYetValidError, CredentialError
from tpm_mtls_server.peer import CERTIFICATE_LIMIT, DevicePeer, OperatorPeer, Peer, check_dates, identify

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.identity import Identity


def der(identity: Identity) -> bytes:
    return leaf(identity).public_bytes(Encoding.DER)


def test_a_device_certificate_names_its_device(ca: DeviceCa) -> None:
    device = ca.device("sensor-17.example")
    peer = identify(der(device))
    certificate = leaf(device)
    assert isinstance(peer, DevicePeer)
    assert (peer.name, peer.device, peer.tpm) == ("sensor-17.example", "sensor-17.example", None)
    assert peer.serial == certificate.serial_number
    assert peer.issuer == ca.issuing.subject.public_bytes()
    assert peer.issuer_key == x509.SubjectKeyIdentifier.from_public_key(ca.issuing.public_key()).digest
    assert (peer.not_before, peer.not_after) == (certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def test_a_device_certificate_names_its_tpm(ca: DeviceCa) -> None:
    tpm = TpmIdentity(bytes(range(32)))
    peer = identify(der(ca.device(names=[x509.DNSName("sensor-17"), *tpm.names()])))
    assert isinstance(peer, DevicePeer)
    assert (peer.device, peer.tpm) == ("sensor-17", tpm)
    with pytest.raises(CredentialError, match="does not name its TPM"):
        identify(der(ca.device(names=[x509.DNSName("sensor-17"), tpm.names()[0]])))


def test_an_operators_certificate_names_its_operator(ca: DeviceCa) -> None:
    operator = ca.operator("alice@example.com")
    peer = identify(der(operator))
    assert isinstance(peer, OperatorPeer)
    assert not isinstance(peer, DevicePeer)
    assert peer.name == "alice@example.com"
    assert peer.serial == leaf(operator).serial_number


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
MAIL, HOST = x509.RFC822Name("alice@example.com"), x509.DNSName("sensor-17")


@pytest.mark.parametrize(
    ("usages", "names", "match"),
    [
        ([CLIENT], [MAIL], "names no single device"),
        ([CLIENT], [HOST, MAIL], "names no single device"),
        ([CLIENT, EKU_OPERATOR], [HOST], "names no single operator"),
        ([CLIENT, EKU_OPERATOR], [HOST, MAIL], "names no single operator"),
        ([CLIENT, EKU_OPERATOR], [MAIL, HOST], "names no single operator"),
        ([CLIENT, EKU_OPERATOR], [MAIL, x509.RFC822Name("bob@example.com")], "names no single operator"),
        ([CLIENT, EKU_OPERATOR], [MAIL, *TpmIdentity(bytes(32)).names()], "names no single operator"),
        ([CLIENT, EKU_OPERATOR], [x509.RFC822Name("Alice@example.com")], "names no single operator"),
        ([CLIENT, EKU_OPERATOR], [x509.DirectoryName(x509.Name([]))], "names no single operator"),
        ([CLIENT, EKU_OPERATOR, SERVER], [MAIL], "an operator's and something else's"),
        ([CLIENT, EKU_OPERATOR, EKU_ATTESTATION_KEY], [MAIL], "an operator's and something else's"),
        ([CLIENT, EKU_OPERATOR, EKU_OPERATOR], [MAIL], "an operator's and something else's"),
        ([EKU_OPERATOR], [MAIL], "not for TLS clients"),
        ([EKU_OPERATOR, SERVER], [MAIL], "not for TLS clients"),
    ],
)
def test_what_is_half_a_device_and_half_an_operator_is_neither(
    ca: DeviceCa, usages: list[x509.ObjectIdentifier], names: list[x509.GeneralName], match: str
) -> None:
    with pytest.raises(CredentialError, match=match):
        identify(der(ca.device(names=names, usages=usages)))


@pytest.mark.parametrize(
    ("number", "text"), [(0x0ABC, "0" * 36 + "0abc"), (0, "0" * 40), (2**159 - 1, "7f" + "ff" * 19)]
)
def test_a_serial_number_is_written_in_whole_bytes(number: int, text: str) -> None:
    now = datetime.now(UTC)
    assert Peer("a", number, b"", None, now, now).serial_hex == text


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([x509.DNSName("a"), x509.DNSName("b")], "no single device"),
        ([x509.DNSName("a"), x509.RFC822Name("a@example.org")], "no single device"),
        ([x509.UniformResourceIdentifier("urn:a")], "no single device"),
        ([x509.DNSName("*.example.org")], "no single device"),
        ([x509.DNSName("Sensor")], "no single device"),
        ([x509.DNSName("sensor\n")], "no single device"),
    ],
    ids=["two", "two kinds", "no dNSName", "wildcard", "upper case", "newline"],
)
def test_another_number_or_kind_of_names_is_refused(ca: DeviceCa, names: list[x509.GeneralName], match: str) -> None:
    with pytest.raises(CredentialError, match=match):
        identify(der(ca.device(names=names)))


@pytest.mark.parametrize(
    "usages",
    [None, [ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]],
    ids=["none", "server", "any"],
)
def test_another_profile_is_refused(ca: DeviceCa, usages: list[x509.ObjectIdentifier] | None) -> None:
    with pytest.raises(CredentialError, match="not for TLS clients"):
        identify(der(ca.device(usages=usages)))


def test_a_ca_certificate_is_refused(ca: DeviceCa) -> None:
    with pytest.raises(CredentialError, match="is a CA's"):
        identify(ca.issuing.public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    ("part", "wrong", "match"),
    [
        (b"\x55\x1d\x25", b"\x55\x1d\x11", "extensions are malformed"),  # subjectAltName twice
        (b"\x82\x01\x61", b"\xa3\x01\x61", "extensions are malformed"),  # x400Address for dNSName
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", "is malformed"),  # version 8
    ],
    ids=["extension twice", "unknown kind of name", "version"],
)
def test_a_malformed_certificate_is_refused(ca: DeviceCa, part: bytes, wrong: bytes, match: str) -> None:
    certificate = der(ca.device("a"))
    assert identify(certificate).name == "a"
    with pytest.raises(CredentialError, match=match):
        identify(certificate.replace(part, wrong, 1))


def test_an_oversized_certificate_is_refused(ca: DeviceCa) -> None:
    certificate = der(ca.device())
    with pytest.raises(CredentialError, match="larger than 16384 bytes"):
        identify(certificate + bytes(CERTIFICATE_LIMIT))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return der(DeviceCa(tmp_path_factory.mktemp("ca")).device())


@given(data=st.data())
def test_a_damaged_certificate_gives_a_peer_or_one_kind_of_error(good: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=4))
    damaged = good[:position] + patch + good[position + data.draw(st.integers(0, 4)) :]
    with contextlib.suppress(CredentialError):
        assert isinstance(identify(damaged), DevicePeer)


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return der(DeviceCa(tmp_path_factory.mktemp("ca")).operator())


@given(data=st.data())
def test_a_damaged_operators_certificate_never_gives_a_device(operators: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(operators) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=4))
    damaged = operators[:position] + patch + operators[position + data.draw(st.integers(0, 4)) :]
    with contextlib.suppress(CredentialError):
        assert isinstance(identify(damaged), OperatorPeer)


def test_dates_include_both_ends(ca: DeviceCa) -> None:
    peer = identify(der(ca.device()))
    check_dates(peer, now=peer.not_before)
    check_dates(peer, now=peer.not_after)
    with pytest.raises(CertificateExpiredError, match=r"^certificate expired\n"):
        check_dates(peer, now=peer.not_after + DAY / 86400)
    with pytest.raises(CertificateNotYetValidError, match=r"^certificate not yet valid\n"):
        check_dates(peer, now=peer.not_before - DAY / 86400)


def test_a_certificate_without_authority_key_is_understood(tmp_path: Path) -> None:
    ca = DeviceCa(tmp_path / "ca")
    assert identify(der(ca.device(authority=False))).issuer_key is None
