"""Signatures over what a TPM attests: TPMT_SIGNATURE and the bare value; which kinds are accepted."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from support.attestation import AttestationKey, number, sized, tpm_signature
from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures import parse_public_area, parse_signature, verify_signature
from tpm_mtls.structures.signature import SIGNATURE_LIMIT

DATA = b"\xffTCG what the TPM says"
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
AK = AttestationKey(P256, "ecdsa-sha256")

KINDS = [
    AttestationKey(P256, "ecdsa-sha256"),
    AttestationKey(P384, "ecdsa-sha384"),
    AttestationKey(P384, "ecdsa-sha512"),
    AttestationKey(RSA, "rsassa-sha256"),
    AttestationKey(RSA, "rsapss-sha256"),
    AttestationKey(RSA, "rsapss-sha384"),
]


@pytest.mark.parametrize("ak", KINDS, ids=lambda ak: f"{ak.public.algorithm}-{ak.scheme}")
def test_both_forms_of_every_accepted_kind_verify(ak: AttestationKey) -> None:
    verify_signature(DATA, ak.sign_as_tpm(DATA), ak.public)
    verify_signature(DATA, ak.sign(DATA), ak.public)
    for signature in (ak.sign_as_tpm(DATA), ak.sign(DATA)):
        with pytest.raises(EvidenceError, match="the attestation key did not sign this attestation"):
            verify_signature(DATA + b".", signature, ak.public)


@pytest.mark.parametrize("ak", KINDS, ids=lambda ak: f"{ak.public.algorithm}-{ak.scheme}")
def test_another_keys_signature_does_not_verify(ak: AttestationKey) -> None:
    if isinstance(ak.key, rsa.RSAPrivateKey):
        other = AttestationKey(rsa.generate_private_key(65537, 2048), ak.scheme)
    else:
        other = AttestationKey(ec.generate_private_key(ak.key.curve), ak.scheme)
    with pytest.raises(EvidenceError, match="did not sign"):
        verify_signature(DATA, other.sign_as_tpm(DATA), ak.public)


def test_the_parts_are_told() -> None:
    found = parse_signature(AK.sign_as_tpm(DATA), AK.public)
    assert (found.scheme, found.hash) == ("ecdsa", "sha256")
    assert all(part > 0 for part in decode_dss_signature(found.value))


def test_a_key_for_any_scheme_takes_what_the_signature_says() -> None:
    unbound = AttestationKey(RSA, "null")
    verify_signature(DATA, AttestationKey(RSA, "rsassa-sha256").sign_as_tpm(DATA), unbound.public)
    with pytest.raises(EvidenceError, match="does not say its scheme, and neither does its key"):
        verify_signature(DATA, AttestationKey(RSA, "rsassa-sha256").sign(DATA), unbound.public)


def test_coordinates_without_leading_zeros_are_accepted() -> None:
    """TPM 2.0 Library part 2, 11.2.5.1, lets a TPM leave them out."""
    r, s = decode_dss_signature(AK.sign(DATA))
    parts = sized(r.to_bytes((r.bit_length() + 7) // 8, "big")) + sized(s.to_bytes((s.bit_length() + 7) // 8, "big"))
    verify_signature(DATA, number(0x0018) + number(0x000B) + parts, AK.public)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (AttestationKey(P256, "ecdsa-sha1").sign_as_tpm(DATA), "a signature with sha1 is not accepted"),
        (
            AttestationKey(P256, "ecdsa-sha384").sign_as_tpm(DATA),
            "is ecdsa-sha384, but its key is for ecdsa-sha256 only",
        ),
        (AttestationKey(RSA, "rsassa-sha256").sign_as_tpm(DATA), "is rsassa-sha256, but its key is for ecdsa-sha256"),
        (AK.sign_as_tpm(DATA) + b"\x00", "neither a TPMT_SIGNATURE nor a DER one"),
        (AK.sign(DATA) + b"\x00", "neither a TPMT_SIGNATURE nor a DER one"),
        (b"\x2a" * 64, "neither a TPMT_SIGNATURE nor a DER one"),
        (b"", "neither a TPMT_SIGNATURE nor a DER one"),
        (number(0x001A) + number(0x000B) + sized(b"x"), "neither a TPMT_SIGNATURE nor a DER one"),
        (number(0x0018) + number(0x000B) + sized(b"") + sized(b""), "did not sign"),
        (bytes(SIGNATURE_LIMIT + 1), f"more than {SIGNATURE_LIMIT} bytes"),
    ],
    ids=range(10),
)
def test_other_signatures_are_refused(signature: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        verify_signature(DATA, signature, AK.public)


def test_weak_keys_are_refused() -> None:
    p521 = AttestationKey(ec.generate_private_key(ec.SECP521R1()), "ecdsa-sha512")
    with pytest.raises(EvidenceError, match="ecdsa signature of ecc-p521 is not accepted"):
        verify_signature(DATA, p521.sign_as_tpm(DATA), p521.public)
    weak = AttestationKey(rsa.generate_private_key(65537, 1024), "rsassa-sha256")  # noqa: S505 - to be refused
    with pytest.raises(EvidenceError, match="rsassa signature of rsa-1024 is not accepted"):
        verify_signature(DATA, weak.sign_as_tpm(DATA), weak.public)


def test_a_scheme_that_does_not_fit_the_key_is_refused() -> None:
    unbound = AttestationKey(P256, "null")
    with pytest.raises(EvidenceError, match="rsassa signature of ecc-p256 is not accepted"):
        verify_signature(DATA, AttestationKey(RSA, "rsassa-sha256").sign_as_tpm(DATA), unbound.public)


def test_data_that_is_no_key_signs_nothing() -> None:
    sealed = parse_public_area(bytes.fromhex("0008000b00000012 0000 0010") + sized(b"\x01" * 32))
    with pytest.raises(EvidenceError, match="ecdsa signature of keyedhash is not accepted"):
        verify_signature(DATA, AK.sign_as_tpm(DATA), sealed)


@given(st.binary(max_size=300), st.sampled_from(KINDS))
def test_any_bytes_are_our_error(signature: bytes, ak: AttestationKey) -> None:
    with pytest.raises(EvidenceError):
        verify_signature(DATA, signature, ak.public)


SIGNED = [(ak, form(ak)) for ak in KINDS for form in (lambda ak: ak.sign(DATA), lambda ak: ak.sign_as_tpm(DATA))]


@given(st.sampled_from(SIGNED), st.data())
def test_a_damaged_signature_never_verifies(signed: tuple[AttestationKey, bytes], draw: st.DataObject) -> None:
    ak, good = signed
    at = draw.draw(st.integers(0, len(good) - 1))
    wrong = draw.draw(st.integers(0, 255).filter(lambda value: value != good[at]))
    with pytest.raises(EvidenceError):
        verify_signature(DATA, good[:at] + bytes([wrong]) + good[at + 1 :], ak.public)


def test_the_support_module_writes_what_libtss2_reads() -> None:
    from tpm2_pytss.types import TPMT_SIGNATURE

    for ak in KINDS:
        data = tpm_signature(ak.sign(DATA), ak.scheme, ak.key)
        signature, used = TPMT_SIGNATURE.unmarshal(data)
        assert used == len(data)
        assert bytes(signature.marshal()) == data
