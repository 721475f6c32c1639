"""Checks 3 to 6 of a quote: each refuses what is wrong in its place, and names itself."""

from __future__ import annotations

import dataclasses
import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from support import attestation
from support.attestation import AttestationKey, certified
from support.event_logs import RECORDED
from support.quotes import (
    NONCE,
    RECORDED_NONCE,
    area_of_pem,
    evidence_of,
    hexadecimal,
    made_evidence,
    made_quote,
    read_pcrs_file,
    recorded_quote,
    software_key,
    some_values,
)
from support.vectors import vector
from tpm_mtls.attestation.quote_checks import (
    check_nonce,
    check_pcrs,
    check_signature,
    check_structure,
    quoted_values,
    verify_quote,
)
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls.structures import Clock, Quoted, parse_public_area

KEY = software_key()
RSA = rsa.generate_private_key(65537, 2048)
KEYS = {
    "p256": KEY,
    "p256-sha384": software_key(scheme="ecdsa-sha384"),
    "p384": software_key(ec.SECP384R1(), "ecdsa-sha384"),
    "rsassa": AttestationKey(RSA, "rsassa-sha256"),
    "rsapss": AttestationKey(RSA, "rsapss-sha256"),
    "rsapss-sha384": AttestationKey(RSA, "rsapss-sha384"),
}


def refused(check: int, match: str) -> pytest.RaisesExc[EvidenceRefusedError]:
    return pytest.raises(EvidenceRefusedError, match=match, check=lambda error: error.check == check)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_quote_passes_whatever_accepted_key_and_hash_signed_it(key: AttestationKey) -> None:
    found = verify_quote(made_evidence(key), NONCE, key.public)

    assert found.pcrs == {"sha256": {pcr: some_values()["sha256"][pcr] for pcr in range(16)}}
    assert found.values is found.pcrs["sha256"]
    assert found.clock == Clock(1234, 5, 6, safe=True)
    assert found.attest.extra_data == NONCE


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_quote_of_several_banks_passes(name: str) -> None:
    evidence = recorded_quote(name)
    key = parse_public_area(evidence.attestation_key)
    assert key.name == vector(f"eventlog/{name}/ak.name")

    found = verify_quote(evidence, RECORDED_NONCE, key)

    assert found.pcrs == read_pcrs_file(vector(f"eventlog/{name}/quote.pcrs"))
    assert list(found.pcrs) == (["sha256"] if name == "uefi-sha256only" else ["sha256", "sha1"])


def test_keylime_s_quote_verifies_but_is_of_too_few_pcrs() -> None:
    nonce = bytes.fromhex("db1db298db6d60e6385b7231743e9c3056a18003")
    key = area_of_pem(vector("quotes/keylime-data-akpub.pem"), "rsassa-sha256")
    assert key.name == vector("quotes/keylime-data-ak.name")
    attest, signature = vector("quotes/keylime-data-quote.out"), vector("quotes/keylime-data-quotesig.out")
    values = read_pcrs_file(vector("quotes/keylime-data-quotepcr.out"))

    check_signature(attest, signature, key)
    parsed, quoted = check_structure(attest)
    check_nonce(parsed, nonce)
    assert quoted_values(quoted, "sha256", values) == values
    with refused(6, "does not hold PCR 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 of the bank sha256"):
        verify_quote(evidence_of(attest, signature, key, values, nonce=nonce), nonce, key)


def test_3_another_key_s_signature_is_refused() -> None:
    attest, signature = made_quote(KEY, some_values())
    check_signature(attest, signature, KEY.public)
    with refused(3, "did not sign"):
        check_signature(attest, signature, software_key().public)
    with refused(3, "its key is for ecdsa-sha384 only"):
        check_signature(attest, signature, KEYS["p256-sha384"].public)
    with refused(3, "neither a TPMT_SIGNATURE nor"):
        check_signature(attest, b"", KEY.public)


def test_3_every_flipped_bit_of_the_signature_is_refused() -> None:
    attest, signature = made_quote(KEY, some_values())
    for at in range(len(signature)):
        for bit in range(8):
            flipped = signature[:at] + bytes([signature[at] ^ 1 << bit]) + signature[at + 1 :]
            with refused(3, "sign"):
                check_signature(attest, flipped, KEY.public)


@given(st.integers(0, 8 * len(made_quote(KEY, some_values())[0]) - 1))
def test_3_every_flipped_bit_of_the_quote_is_refused(bit: int) -> None:
    evidence = made_evidence(KEY)
    data = bytearray(evidence.attest)
    data[bit // 8] ^= 1 << bit % 8
    with refused(3, "did not sign"):
        verify_quote(msgspec.structs.replace(evidence, attest=bytes(data)), NONCE, KEY.public)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"magic": b"\xffTCH"}, "does not come from a TPM"),
        ({"kind": 0x8017}, "malformed"),
        ({"kind": 0x8019}, "neither a Certify nor a Quote"),
        ({"clock": bytes(16) + b"\x02"}, "malformed"),
        ({"signer": bytes(67)}, "malformed"),
    ],
    ids=["magic", "certify", "another type", "safe", "signer"],
)
def test_4_what_no_tpm_wrote_is_refused_even_signed(wrong: dict[str, object], message: str) -> None:
    with refused(4, message):
        verify_quote(made_evidence(KEY, attest=wrong), NONCE, KEY.public)


def test_4_a_certification_is_no_quote() -> None:
    attest = attestation.attest(certified(), extra=NONCE)
    with refused(4, "no quote: it certifies a key"):
        check_structure(attest)


def test_4_every_truncation_and_a_byte_too_many_is_refused() -> None:
    attest, _ = made_quote(KEY, some_values())
    for data in (*(attest[:length] for length in range(len(attest))), attest + b"\0"):
        with refused(4, "malformed attestation"):
            check_structure(data)


@pytest.mark.parametrize(
    "other", [NONCE[:-1], NONCE + b"\0", bytes(32), b""], ids=["shorter", "longer", "other", "none"]
)
def test_5_the_answer_to_another_nonce_is_refused(other: bytes) -> None:
    evidence = made_evidence(KEY)
    verify_quote(evidence, NONCE, KEY.public)
    with refused(5, "answers another nonce"):
        verify_quote(evidence, other, KEY.public)


@pytest.mark.parametrize("pcr", range(16))
def test_6_each_signed_pcr_must_have_its_value(pcr: int) -> None:
    evidence = made_evidence(KEY)
    values = some_values()
    values["sha256"][pcr] = hashlib.sha256(b"other").digest()
    with refused(6, "not those that were quoted"):
        verify_quote(msgspec.structs.replace(evidence, pcrs=hexadecimal(values)), NONCE, KEY.public)
    del values["sha256"][pcr]
    with refused(6, f"the value of PCR {pcr} of the bank sha256 was quoted, but not sent"):
        verify_quote(msgspec.structs.replace(evidence, pcrs=hexadecimal(values)), NONCE, KEY.public)


@pytest.mark.parametrize("pcr", range(16))
def test_6_each_of_the_first_16_must_be_selected(pcr: int) -> None:
    values = some_values()
    selection = {"sha256": [each for each in range(24) if each != pcr]}
    attest, signature = made_quote(KEY, values, selection=selection)
    with refused(6, f"does not hold PCR {pcr} of the bank sha256"):
        verify_quote(evidence_of(attest, signature, KEY.public, values), NONCE, KEY.public)


def test_6_a_quote_of_another_bank_only_is_refused() -> None:
    values = {"sha1": {pcr: bytes(20) for pcr in range(16)}}
    attest, signature = made_quote(KEY, values, selection={"sha1": range(16)})
    with refused(6, "does not hold PCR 0, 1, .* of the bank sha256"):
        verify_quote(evidence_of(attest, signature, KEY.public, values), NONCE, KEY.public)


def test_6_unsigned_values_change_nothing_and_are_not_returned() -> None:
    evidence = made_evidence(KEY)
    values = some_values()
    values["sha256"][23] = bytes(32)
    values["sha1"] = {0: bytes(20)}
    found = verify_quote(msgspec.structs.replace(evidence, pcrs=hexadecimal(values)), NONCE, KEY.public)
    assert {bank: list(of) for bank, of in found.pcrs.items()} == {"sha256": list(range(16))}


def test_6_more_selected_pcrs_are_returned_with_the_others() -> None:
    values = some_values() | {"sha1": {pcr: bytes([pcr]) * 20 for pcr in range(8)}}
    selection = {"sha256": range(24), "sha1": [0, 7]}
    attest, signature = made_quote(KEY, values, selection=selection)
    found = verify_quote(evidence_of(attest, signature, KEY.public, values), NONCE, KEY.public)
    assert {bank: list(of) for bank, of in found.pcrs.items()} == {"sha256": list(range(24)), "sha1": [0, 7]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sha256": {0: bytes(20)}}, "no PCR 0 of a bank sha256 has a value of 20 bytes"),
        ({"sha256": {24: bytes(32)}}, "no PCR 24 of a bank sha256"),
        ({"sha1": {0: bytes(32)}}, "no PCR 0 of a bank sha1 has a value of 32 bytes"),
        ({"md5": {0: bytes(16)}}, "no PCR 0 of a bank md5"),
    ],
    ids=["size", "number", "another bank's size", "bank"],
)
def test_6_values_that_no_pcr_can_have_are_refused(values: dict[str, dict[int, bytes]], message: str) -> None:
    _, quoted = check_structure(made_quote(KEY, some_values())[0])
    with refused(6, message):
        check_pcrs(quoted, "sha256", values)


def test_6_two_values_that_share_their_bytes_otherwise_are_refused() -> None:
    """A digest over values one after the other does not say where one ends; their sizes must."""
    values = some_values()
    first, second = values["sha256"][0], values["sha256"][1]
    _, quoted = check_structure(made_quote(KEY, values)[0])
    values["sha256"] |= {0: first + second[:16], 1: second[16:]}
    with refused(6, "has a value of 48 bytes"):
        check_pcrs(quoted, "sha256", values)


def test_6_the_digest_is_made_with_the_signature_s_hash() -> None:
    key = KEYS["p256-sha384"]
    _, quoted = check_structure(made_quote(key, some_values())[0])
    check_pcrs(quoted, "sha384", some_values())
    with refused(6, "not those that were quoted"):
        check_pcrs(quoted, "sha256", some_values())


def test_6_an_unknown_bank_in_the_selection_is_refused() -> None:
    _, quoted = check_structure(made_quote(KEY, some_values())[0])
    more = Quoted((*quoted.selection, ("sm3-256", (0,))), quoted.digest)
    with refused(6, "PCR 0 of the bank sm3-256 was quoted, but not sent"):
        check_pcrs(more, "sha256", some_values())
    empty = dataclasses.replace(quoted, selection=(*quoted.selection, ("sm3-256", ())))
    check_pcrs(empty, "sha256", some_values())
