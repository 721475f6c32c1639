"""By what a certificate names its TPM."""

from __future__ import annotations

import hashlib
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.device_identity import (
    OID_HARDWARE_MODULE_NAME,
    OID_PERMANENT_IDENTIFIER,
    TpmIdentity,
    tpm_identity,
)
from tpm_mtls.errors import CredentialError

TPM = TpmIdentity(hashlib.sha256(b"an EK certificate").digest())
MODULE, IDENTIFIER = TPM.names()
MESSAGE = "does not name its TPM"


def other(kind: x509.ObjectIdentifier, value: bytes) -> x509.OtherName:
    return x509.OtherName(kind, value)


def test_the_two_names_have_the_standards_form() -> None:
    """RFC 4108, 5: SEQUENCE of OID 2.23.133.1.2 and octets. RFC 4043, 3: SEQUENCE of hex and OID 2.23.133.12.1."""
    assert MODULE.type_id == OID_HARDWARE_MODULE_NAME
    assert MODULE.value == bytes.fromhex("3029 0605 6781050102 0420") + TPM.digest
    assert IDENTIFIER.type_id == OID_PERMANENT_IDENTIFIER
    assert IDENTIFIER.value == bytes.fromhex("3049 0c40") + str(TPM).encode() + bytes.fromhex("0605 6781050c01")


def test_a_certificates_names_tell_its_tpm() -> None:
    device = x509.DNSName("sensor-17")
    assert tpm_identity([device, MODULE, IDENTIFIER]) == TPM
    assert tpm_identity([IDENTIFIER, device, MODULE]) == TPM
    assert tpm_identity([device]) is None
    assert tpm_identity([]) is None


@pytest.mark.parametrize(
    "names",
    [
        [MODULE],
        [IDENTIFIER],
        [MODULE, IDENTIFIER, MODULE],
        [MODULE, MODULE],
        [MODULE, TpmIdentity(bytes(32)).names()[1]],
        [MODULE, IDENTIFIER, other(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")],
        [other(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")],
        [other(OID_HARDWARE_MODULE_NAME, b"garbage"), IDENTIFIER],
        [MODULE, other(OID_PERMANENT_IDENTIFIER, b"")],
        [MODULE, other(OID_PERMANENT_IDENTIFIER, b"\x30\x00")],
        [MODULE, other(OID_PERMANENT_IDENTIFIER, IDENTIFIER.value.replace(b"\x0c\x01", b"\x0c\x02"))],
        [other(OID_HARDWARE_MODULE_NAME, MODULE.value.replace(b"\x05\x01\x02", b"\x05\x01\x01")), IDENTIFIER],
        [*TpmIdentity(bytes(31)).names()],
    ],
    ids=range(13),
)
def test_any_other_names_are_refused(names: list[x509.GeneralName]) -> None:
    with pytest.raises(CredentialError, match=MESSAGE):
        tpm_identity(names)


@given(st.sampled_from([MODULE, IDENTIFIER]), st.data())
def test_damage_is_refused(name: x509.OtherName, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(name.value) - 1))
    wrong = draw.draw(st.integers(0, 255).filter(lambda value: value != name.value[at]))
    damaged = other(name.type_id, name.value[:at] + bytes([wrong]) + name.value[at + 1 :])
    with pytest.raises(CredentialError, match=MESSAGE):
        tpm_identity([damaged, IDENTIFIER if name is MODULE else MODULE])


def test_openssl_reads_the_names() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(key.public_key()).serial_number(1).not_valid_before(now).not_valid_after(now)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("a"), *TPM.names()]), critical=False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-ext", "subjectAltName"],
        input=der, capture_output=True, check=True, text=False,
    )  # fmt: skip
    # OpenSSL 3.5 has a name for both of them, 3.0 for one
    assert b"Hardware Module Name" in done.stdout or b"1.3.6.1.5.5.7.8.4" in done.stdout
    assert b"Permanent Identifier" in done.stdout or b"1.3.6.1.5.5.7.8.3" in done.stdout
