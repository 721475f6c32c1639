"""What a TPM attests: TPMS_ATTEST, from a simulated TPM, from the recorded example, and malformed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.attestation import QUOTE, SOME_NAME, attest, certified, number, quoted
from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures import AttestType, Certified, Clock, Quoted, parse_attest, parse_public_area, verify_signature
from tpm_mtls.structures.attestation import ATTEST_LIMIT

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

CERTIFY = attest(certified())
QUOTATION = attest(quoted((0x000B, b"\x81\x00\x80"), (0x000C, b"\x00\x00\x00")), kind=QUOTE)


def test_a_certify_tells_the_name_and_the_circumstances() -> None:
    found = parse_attest(attest(certified(b"\x00\x0b" + b"n" * 32, b"\x00\x0b" + b"q" * 32), extra=b"x" * 32))

    assert found.type is AttestType.CERTIFY
    assert found.attested == Certified(b"\x00\x0b" + b"n" * 32, b"\x00\x0b" + b"q" * 32)
    assert found.extra_data == b"x" * 32
    assert found.qualified_signer == SOME_NAME
    assert found.clock == Clock(1234, 5, 6, safe=True)
    assert found.firmware_version == 7


def test_a_quote_tells_its_pcrs_in_its_own_order() -> None:
    found = parse_attest(QUOTATION)

    assert found.type is AttestType.QUOTE
    assert found.attested == Quoted((("sha256", (0, 7, 23)), ("sha384", ())), bytes(32))


def test_a_quote_of_no_bank_at_all_is_one() -> None:
    assert parse_attest(attest(quoted(), kind=QUOTE)).attested == Quoted((), bytes(32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (attest(certified(), magic=b"\xffTCH"), "does not come from a TPM"),
        (attest(certified(), kind=0x8019), "type 0x8019 is neither a Certify nor a Quote"),
        (attest(certified(), kind=QUOTE), "malformed attestation"),
        (attest(quoted(), kind=0x8017), "malformed attestation"),
        (attest(certified(b"n" * 67)), "malformed attestation"),
        (attest(certified(), extra=b"x" * 67), "malformed attestation"),
        (attest(certified(), signer=b"x" * 67), "malformed attestation"),
        (attest(quoted((0x000B, b"\xff" * 5)), kind=QUOTE), "malformed attestation"),
        (attest(quoted(*[(0x000B, b"\xff")] * 17), kind=QUOTE), "malformed attestation"),
        (attest(quoted(digest=bytes(65)), kind=QUOTE), "malformed attestation"),
        (attest(number(0xFFFFFFFF, 4), kind=QUOTE), "malformed attestation"),
        (attest(certified(), clock=bytes(16) + b"\x02"), "malformed attestation"),
        (CERTIFY + b"\x00", "malformed attestation"),
        (CERTIFY + bytes(ATTEST_LIMIT), f"more than {ATTEST_LIMIT} bytes"),
        (b"", "malformed attestation"),
    ],
    ids=range(15),
)
def test_anything_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        parse_attest(data)


def test_a_bank_of_an_unknown_hash_goes_by_its_number() -> None:
    found = parse_attest(attest(quoted((0x0BAD, b"\x01")), kind=QUOTE))
    assert found.attested == Quoted((("0x0bad", (0,)),), bytes(32))


@pytest.mark.parametrize("data", [CERTIFY, QUOTATION], ids=["certify", "quote"])
def test_every_truncation_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(EvidenceError):
            parse_attest(data[:length])


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda tail: CERTIFY[:6] + tail))
def test_any_bytes_are_an_attestation_or_our_error(data: bytes) -> None:
    try:
        found = parse_attest(data)
    except EvidenceError:
        return
    assert found.data == data


@given(st.sampled_from([CERTIFY, QUOTATION]), st.data())
def test_damage_raises_our_error_only(good: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(good) - 1))
    wrong = draw.draw(st.binary(min_size=1, max_size=4))
    damaged = good[:at] + wrong + good[at + len(wrong) :]
    try:
        found = parse_attest(damaged)
    except EvidenceError:
        return
    assert found.data == damaged


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_what_a_tpm_certifies_and_quotes_is_read_and_verified(
    tpm: SimulatedTpm, tmp_path: Path, algorithm: str
) -> None:
    """tpm2-tools make the keys, the Certify and the Quote."""
    kind, scheme = {"ecc": ("ecc", "ecdsa"), "rsa": ("rsa2048", "rsapss")}[algorithm]
    certify = ("tpm2_certify", "-c", "key", "-C", "ak", "-g", "sha256", "--scheme", scheme)
    born = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth"

    def tool(*command: str) -> None:
        tpm.tool(*command, cwd=tmp_path)
        tpm.flush()

    tool("tpm2_createprimary", "-C", "o", "-c", "primary")
    tool(
        "tpm2_create",
        "-C",
        "primary",
        "-G",
        f"{kind}:{scheme}-sha256:null",
        "-a",
        f"{born}|restricted|sign",
        *_files("ak"),
    )
    tool("tpm2_load", "-C", "primary", *_files("ak"), "-c", "ak", "-n", "ak.name")
    tool("tpm2_create", "-C", "primary", "-G", "ecc:null:null", "-a", f"{born}|sign", *_files("key"))
    tool("tpm2_load", "-C", "primary", *_files("key"), "-c", "key", "-n", "key.name")
    tool(*certify, "-o", "attest", "-s", "signature")
    tool(*certify, "-o", "attest.plain", "-s", "bare", "-f", "plain")
    quote = ("tpm2_quote", "-c", "ak", "-l", "sha256:0,7,16", "-q", "c0ffee", "--scheme", scheme)
    tool(*quote, "-m", "quote", "-s", "quote.signature")

    ak = parse_public_area((tmp_path / "ak.pub").read_bytes()[2:])
    key = parse_public_area((tmp_path / "key.pub").read_bytes()[2:])
    data = (tmp_path / "attest").read_bytes()
    found = parse_attest(data)
    assert isinstance(found.attested, Certified)
    assert found.attested.name == key.name == (tmp_path / "key.name").read_bytes()
    assert found.qualified_signer[:2] == b"\x00\x0b"
    verify_signature(data, (tmp_path / "signature").read_bytes(), ak)
    verify_signature((tmp_path / "attest.plain").read_bytes(), (tmp_path / "bare").read_bytes(), ak)
    with pytest.raises(EvidenceError, match="did not sign"):
        verify_signature(data[:-1] + bytes([data[-1] ^ 1]), (tmp_path / "signature").read_bytes(), ak)

    quoted_now = parse_attest((tmp_path / "quote").read_bytes())
    assert isinstance(quoted_now.attested, Quoted)
    assert quoted_now.attested.selection == (("sha256", (0, 7, 16)),)
    assert quoted_now.extra_data == bytes.fromhex("c0ffee")
    verify_signature(quoted_now.data, (tmp_path / "quote.signature").read_bytes(), ak)


def _files(name: str) -> tuple[str, ...]:
    return ("-u", f"{name}.pub", "-r", f"{name}.priv")
