"""What the CA takes from a CSR: an acceptable key whose owner signed; nothing else, and never another exception."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from support.authority import attacking_extensions, make_csr, new_key
from tpm_mtls.certificates import spki
from tpm_mtls.errors import CsrRefusedError
from tpm_mtls_pki.csr import CheckedCsr, check_csr, check_public_key, key_digest, parse_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

RSA_2048 = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("key", [new_key(ec.SECP256R1), new_key(ec.SECP384R1), RSA_2048])
def test_good_keys_pass_in_der_and_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    der = make_csr(key)
    pem = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    for data in (der, pem):
        assert spki(check_csr(data).public_key) == spki(key.public_key())
        assert check_csr(data).ignored == ()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (new_key(ec.SECP521R1), "keys on secp521r1"),
        (new_key(ec.SECP256K1), "keys on secp256k1"),
        (rsa.generate_private_key(65537, 1024), "RSA keys of 1024 bits"),  # noqa: S505 - weak on purpose
        (rsa.generate_private_key(3, 2048), "an unusual exponent"),
    ],
)
def test_weak_or_unusual_keys_are_refused(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, message: str) -> None:
    with pytest.raises(CsrRefusedError, match=message):
        check_csr(make_csr(key))


def test_other_kinds_of_keys_are_refused() -> None:
    kinds: list[PublicKeyTypes] = [
        ed25519.Ed25519PrivateKey.generate().public_key(),
        dsa.generate_private_key(2048).public_key(),
    ]
    for key in kinds:
        with pytest.raises(CsrRefusedError, match="that kind of key"):
            check_public_key(key)


def test_rsa_keys_over_4096_bits_are_refused() -> None:
    numbers = rsa.RSAPublicNumbers(65537, (1 << 8191) + 1)
    with pytest.raises(CsrRefusedError, match="RSA keys of 8192 bits"):
        check_public_key(numbers.public_key())


def test_a_csr_that_its_key_did_not_sign_is_refused() -> None:
    """Whoever asks must have the private key: a signature over something else, or by another key, does not do."""
    der = make_csr(new_key(), name="sensor-1")
    with pytest.raises(CsrRefusedError, match="signature is wrong"):
        check_csr(der.replace(b"sensor-1", b"sensor-2"))
    mine, other = new_key(), new_key()
    swapped = make_csr(mine).replace(spki(mine.public_key()), spki(other.public_key()))
    with pytest.raises(CsrRefusedError, match="signature is wrong"):
        check_csr(swapped)


def test_weak_digests_are_refused() -> None:
    """Openssl still signs with SHA-1; the CA does not accept it."""
    assert check_csr(make_csr(RSA_2048, digest=hashes.SHA384()))
    with pytest.raises(CsrRefusedError, match="unacceptable digest"):
        check_csr(make_csr(RSA_2048, digest=hashes.SHA3_256()))


def test_what_a_csr_asks_for_is_noted_and_not_more() -> None:
    checked = check_csr(make_csr(new_key(), name="evil", extensions=attacking_extensions()))
    assert checked.ignored == (
        "subject CN=evil",
        "critical BasicConstraints CA:TRUE",
        "critical SubjectAlternativeName evil.example ::1",
        "ExtendedKeyUsage",
        "1.3.6.1.4.1.99999.1",
    )
    long = check_csr(make_csr(new_key(), extensions=[(x509.SubjectAlternativeName([x509.DNSName("a" * 250)]), False)]))
    assert len(long.ignored[0]) == 120


def test_the_name_that_it_gets_anyway_is_no_foreign_wish() -> None:
    name = x509.SubjectAlternativeName([x509.DNSName("sensor-1")])
    checked = check_csr(make_csr(new_key(), name="sensor-1", extensions=[(name, False)]))
    assert checked.foreign("sensor-1") == ()
    assert checked.foreign("sensor-2") == checked.ignored != ()
    assert CheckedCsr(checked.public_key).foreign("x") == ()


def test_a_public_key_alone_is_read_too() -> None:
    key = new_key().public_key()
    for encoding in (Encoding.DER, Encoding.PEM):
        assert parse_public_key(key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)) == key
    with pytest.raises(CsrRefusedError, match="no public key"):
        parse_public_key(b"nonsense")


def test_the_digest_of_a_key_is_that_of_its_spki() -> None:
    import hashlib

    key = new_key().public_key()
    assert key_digest(key) == hashlib.sha256(spki(key)).hexdigest()


_CSR = make_csr(new_key(), name="sensor-1", extensions=attacking_extensions())


@given(st.integers(0, len(_CSR) - 1), st.binary(min_size=1, max_size=4))
def test_damaged_csrs_raise_our_error_only(at: int, wrong: bytes) -> None:
    with suppress(CsrRefusedError):
        check_csr(_CSR[:at] + wrong + _CSR[at + len(wrong) :])


@pytest.mark.parametrize("at", range(0, len(_CSR), 5))
def test_no_damaged_csr_passes(at: int) -> None:
    damaged = bytearray(_CSR)
    damaged[at] ^= 0x15
    with pytest.raises(CsrRefusedError):
        check_csr(bytes(damaged))


def test_a_csr_with_one_extension_twice_is_malformed() -> None:
    """Nobody can say what it asks for."""
    twice = [
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.3.6.1.4.1.99999.{n}"), b"\5\0"), False) for n in (1, 2)
    ]
    der = make_csr(new_key(), extensions=twice)
    changed = der.replace(b"\x86\x8d\x1f\x02", b"\x86\x8d\x1f\x01")
    assert changed != der
    with pytest.raises(CsrRefusedError, match="malformed"):
        check_csr(changed)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("sensor-1", "sensor-1"), (None, None), ("Sensor 1", None), ("*.example", None), ("x" * 64, None)],
)
def test_a_csr_may_ask_for_a_device_name(name: str | None, asked: str | None) -> None:
    """Whether it gets it is not the CSR's affair."""
    checked = check_csr(make_csr(new_key(), name=name))
    assert checked.asked == asked
    assert checked.evidence is None
