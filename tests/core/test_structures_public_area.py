"""Public areas: what a key is, its Name and its public key, without a TPM."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import PemError
from tpm_mtls.structures import Attribute, KeyAlgorithm, parse_public_area, qualified_name
from tpm_mtls.structures.algorithms import algorithm_name, curve_name
from tpm_mtls.structures.public_area import PUBLIC_LIMIT

_X = bytes.fromhex("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")
_Y = bytes.fromhex("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")  # the generator of P-256
_TLS_KEY = Attribute.FIXEDTPM | Attribute.FIXEDPARENT | Attribute.SENSITIVEDATAORIGIN | Attribute.SIGN


def sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def ecc(
    *,
    attributes: int = int(_TLS_KEY),
    name: int = 0x000B,
    scheme: str = "0010",
    curve: int = 3,
    x: bytes = _X,
    policy: bytes = b"",
) -> bytes:
    """A TPMT_PUBLIC by hand: part 2, 12.2.4."""
    return (
        b"\x00\x23" + name.to_bytes(2, "big") + attributes.to_bytes(4, "big") + sized(policy)
        + bytes.fromhex("0010" + scheme) + curve.to_bytes(2, "big") + bytes.fromhex("0010") + sized(x) + sized(_Y)
    )  # fmt: skip


def test_a_p256_signing_key_is_described() -> None:
    found = parse_public_area(ecc())

    assert found.algorithm == "ecc-p256"
    assert found.key_algorithm is KeyAlgorithm.ECC_P256
    assert found.scheme == "null"
    assert found.name_algorithm == "sha256"
    assert found.attribute_words == ("fixedTPM", "fixedParent", "sensitiveDataOrigin", "sign")
    assert found.is_signing_key
    assert not found.is_storage_key
    assert found.was_born_inside
    assert str(found) == f"ecc-p256 (fixedTPM, fixedParent, sensitiveDataOrigin, sign), Name {found.name.hex()}"


def test_the_name_is_the_algorithm_and_the_digest_of_the_public_area() -> None:
    assert parse_public_area(ecc()).name == b"\x00\x0b" + hashlib.sha256(ecc()).digest()
    sha384 = ecc(name=0x000C)
    assert parse_public_area(sha384).name == b"\x00\x0c" + hashlib.sha384(sha384).digest()
    sha3 = ecc(name=0x0027)
    assert parse_public_area(sha3).name == b"\x00\x27" + hashlib.sha3_256(sha3).digest()


def test_without_a_name_algorithm_there_is_no_name() -> None:
    found = parse_public_area(ecc(name=0x0010))
    assert found.name == b""
    assert qualified_name(b"\x40\x00\x00\x01", found) == b""


def test_an_unknown_name_algorithm_is_refused() -> None:
    with pytest.raises(PemError, match="Name algorithm sm3-256 is none that is known"):
        parse_public_area(ecc(name=0x0012))


def test_a_qualified_name_digests_the_parents_and_the_name() -> None:
    found = parse_public_area(ecc())
    expected = b"\x00\x0b" + hashlib.sha256(b"\x40\x00\x00\x01" + found.name).digest()
    assert qualified_name(b"\x40\x00\x00\x01", found) == expected


def test_the_public_key_is_what_openssl_reads() -> None:
    spki = parse_public_area(ecc()).spki
    assert spki is not None
    key = load_der_public_key(spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.public_numbers().x == int.from_bytes(_X, "big")
    done = subprocess.run(
        ["openssl", "pkey", "-pubin", "-inform", "DER", "-noout", "-text"], input=spki, capture_output=True, check=True
    )
    assert b"prime256v1" in done.stdout


def test_an_rsa_key_with_the_default_exponent_has_65537() -> None:
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n.to_bytes(256, "big")
    area = bytes.fromhex("0001000b00040072 0000 0010 0014000b 0800 00000000") + sized(modulus)
    found = parse_public_area(area)

    assert (found.algorithm, found.scheme) == ("rsa-2048", "rsassa-sha256")
    assert found.spki is not None
    key = load_der_public_key(found.spki)
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.public_numbers().e == 65537


def test_a_modulus_is_as_long_as_the_area_says() -> None:
    """Whoever accepts RSA-2048 must not get less."""
    modulus = rsa.generate_private_key(65537, 1024).public_key().public_numbers().n.to_bytes(128, "big")  # noqa: S505 - to be refused
    area = bytes.fromhex("0001000b00040072 0000 0010 0014000b 0800 00000000")
    for short in (sized(modulus), sized(bytes(128) + modulus)):
        with pytest.raises(PemError, match="says 2048 bits, its modulus has 1024"):
            parse_public_area(area + short)


def test_a_scheme_without_a_hash_is_named_alone() -> None:
    area = bytes.fromhex("0001000b00020072 0000 0010 0015 0800 00000000") + sized(b"\xff" * 256)
    assert parse_public_area(area).scheme == "rsaes"


def test_a_fixed_scheme_is_named_with_its_hash() -> None:
    assert parse_public_area(ecc(scheme="0018000c")).scheme == "ecdsa-sha384"


def test_sealed_data_has_no_public_key() -> None:
    found = parse_public_area(bytes.fromhex("0008000b00000012 0000 0010") + sized(b"\x01" * 32))
    assert (found.algorithm, found.spki, found.key_algorithm, found.scheme) == ("keyedhash", None, None, "null")
    assert not found.is_signing_key


def test_a_curve_that_is_not_known_has_no_public_key() -> None:
    found = parse_public_area(ecc(curve=0x0010))
    assert (found.algorithm, found.spki) == ("ecc-bn-p256", None)


def test_a_point_beside_the_curve_is_refused() -> None:
    with pytest.raises(PemError, match="no valid public key"):
        parse_public_area(ecc(x=_X[:-1] + b"\x00"))


def test_an_imported_key_was_not_born_inside() -> None:
    found = parse_public_area(ecc(attributes=int(Attribute.SIGN | Attribute.USERWITHAUTH)))
    assert not found.was_born_inside
    assert found.is_signing_key


def test_a_restricted_key_is_no_tls_key() -> None:
    assert not parse_public_area(ecc(attributes=int(_TLS_KEY | Attribute.RESTRICTED))).is_signing_key


def test_a_storage_key_is_restricted_and_decrypts() -> None:
    assert parse_public_area(ecc(attributes=0x00030000)).is_storage_key
    assert not parse_public_area(ecc(attributes=0x00020000)).is_storage_key
    assert not parse_public_area(ecc(attributes=0x00070000)).is_storage_key


def test_a_policy_is_kept() -> None:
    assert parse_public_area(ecc(policy=b"\x07" * 32)).policy == b"\x07" * 32


@pytest.mark.parametrize(
    ("data", "what"),
    [
        pytest.param(b"", "malformed", id="empty"),
        pytest.param(ecc()[:-1], "malformed", id="truncated"),
        pytest.param(ecc() + b"\x00", "bytes that do not belong", id="trailing"),
        pytest.param(b"\x00" * (PUBLIC_LIMIT + 1), "more than 1024 bytes", id="oversized"),
        pytest.param(ecc(policy=b"\x07" * 65), "malformed", id="policy longer than any digest"),
        pytest.param(b"\xff\xff" + ecc()[2:], "malformed", id="unknown type"),
    ],
)
def test_what_is_no_public_area_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(PemError, match=what):
        parse_public_area(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_but_never_crash(data: bytes) -> None:
    try:
        found = parse_public_area(data)
    except PemError:
        return
    assert found.data == data


@given(st.integers(0, len(ecc()) - 1), st.integers(0, 255), st.integers(0, len(ecc())))
def test_a_mutated_public_area_is_refused_or_read_as_it_is(position: int, value: int, end: int) -> None:
    data = bytearray(ecc())
    data[position] = value
    mutated = bytes(data[:end]) if end % 2 else bytes(data)
    try:
        found = parse_public_area(mutated)
    except PemError:
        return
    assert found.data == mutated


def test_numbers_without_a_name_are_shown_as_numbers() -> None:
    assert algorithm_name(0x7777) == "0x7777"
    assert curve_name(0x7777) == "0x7777"


def test_libtss2_says_nothing_on_stderr_about_bad_input(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PemError):
        parse_public_area(b"\x00\x23\x00")
    assert capfd.readouterr().err == ""
