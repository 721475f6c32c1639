"""The messages of attestation: what they hold, and what is no such message."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.quotes import made_evidence, recorded_quote, software_key, some_values
from tpm_mtls import event_log, ima
from tpm_mtls.attestation.messages import (
    ANSWER_LIMIT,
    EVENT_LOG_LIMIT,
    EVIDENCE_LIMIT,
    IMA_LOG_LIMIT,
    NONCE_LENGTHS,
    Challenge,
    DeviceState,
    HealthAnswer,
    QuoteEvidence,
    Verdict,
    decode,
    decode_evidence,
    encode,
    pcr_values,
)
from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures.attestation import ATTEST_LIMIT
from tpm_mtls.structures.public_area import PUBLIC_LIMIT
from tpm_mtls.structures.signature import SIGNATURE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = software_key()
EVIDENCE = made_evidence(KEY)
VERDICT = Verdict(trusted=False, check=9, reason="no", differences=("PCR 4",), state=DeviceState.FAILING)
MESSAGES = [
    Challenge(nonce=bytes(32), lifetime=60),
    VERDICT,
    Verdict(trusted=True, state=DeviceState.ATTESTED),
    HealthAnswer(attest=True),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded(message: Challenge | Verdict | HealthAnswer) -> None:
    assert decode(encode(message), type(message)) == message


def test_evidence_arrives_as_it_was_sent() -> None:
    assert decode_evidence(encode(EVIDENCE)) == EVIDENCE
    with_logs = recorded_quote("uefi-secureboot")
    assert decode_evidence(encode(with_logs)) == with_logs


def test_values_are_found_by_bank_and_number() -> None:
    assert pcr_values(EVIDENCE) == some_values()


def test_evidence_with_both_logs_at_their_limits_is_within_its_own() -> None:
    large = msgspec.structs.replace(EVIDENCE, event_log=bytes(EVENT_LOG_LIMIT), ima_log=bytes(IMA_LOG_LIMIT))
    assert decode_evidence(encode(large)) == large


def test_the_limits_are_those_of_what_reads_the_parts() -> None:
    assert event_log.LOG_LIMIT == EVENT_LOG_LIMIT
    assert ima.IMA_LOG_LIMIT == IMA_LOG_LIMIT
    for field, limit in {"attest": ATTEST_LIMIT, "signature": SIGNATURE_LIMIT, "attestation_key": PUBLIC_LIMIT}.items():
        decode_evidence(encode(msgspec.structs.replace(EVIDENCE, **{field: bytes(limit)})))


def _with(**members: Any) -> Callable[[dict[str, Any]], None]:  # noqa: ANN401 - JSON
    return lambda evidence: evidence.update(members)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (_with(format=2), "invalid enum value 2 - at `\\$.format`"),
        (_with(more=1), "unknown field"),
        (lambda evidence: evidence.pop("nonce"), "missing required field `nonce`"),
        (_with(nonce="AAAA"), "length >= 12"),
        (_with(nonce="A" * 44), "length <= 32"),
        (_with(attest="not base64!"), "base64"),
        (_with(attest="A" * 1368), "length <= 1024"),
        (_with(signature="A" * 1368), "length <= 1024"),
        (_with(attestation_key="A" * 1368), "length <= 1024"),
        (_with(certificate="A" * 5464), "length <= 4096"),
        (_with(pcrs={"md5": {}}), "invalid enum value 'md5'"),
        (_with(pcrs={"sha256": {"24": "00" * 32}}), "<= 23"),
        (_with(pcrs={"sha256": {"-1": "00" * 32}}), ">= 0"),
        (_with(pcrs={"sha256": {"01": "00" * 32}}), "expected `int`"),
        (_with(pcrs={"sha256": {"1": "00" * 19}}), "matching regex"),
        (_with(pcrs={"sha256": {"1": "00" * 65}}), "matching regex"),
        (_with(pcrs={"sha256": {"1": "AA" * 32}}), "matching regex"),
        (_with(pcrs={"sha256": {"1": "00" * 32 + "\n"}}), "matching regex"),
        (_with(pcrs=[]), "expected `object`"),
        (_with(event_log="A" * (1398104 + 4)), "length <= 1048576"),
        (_with(ima_log="A" * (5592408 + 4)), "length <= 4194304"),
    ],
    ids=range(21),
)
def test_evidence_that_is_wrong_in_one_place_is_none(wrong: Callable[[dict[str, Any]], object], message: str) -> None:
    evidence = json.loads(encode(EVIDENCE))
    assert decode_evidence(json.dumps(evidence).encode()) == EVIDENCE
    wrong(evidence)
    with pytest.raises(EvidenceError, match=f"malformed QuoteEvidence: .*{message}"):
        decode_evidence(json.dumps(evidence).encode())


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"\xff"', b'{"nonce": "\\ud800"}', b"[" * 100_000, encode(EVIDENCE) + b"{}"],
    ids=range(8),
)
def test_what_is_no_json_object_is_no_message(body: bytes) -> None:
    for kind in (QuoteEvidence, Challenge, Verdict, HealthAnswer):
        with pytest.raises(EvidenceError, match=f"malformed {kind.__name__}"):
            decode(body, kind)


def test_oversized_messages_are_not_parsed() -> None:
    with pytest.raises(EvidenceError, match=f"a QuoteEvidence of more than {EVIDENCE_LIMIT} bytes"):
        decode_evidence(encode(EVIDENCE).ljust(EVIDENCE_LIMIT + 1))
    with pytest.raises(EvidenceError, match=f"a Verdict of more than {ANSWER_LIMIT} bytes"):
        decode(encode(VERDICT).ljust(ANSWER_LIMIT + 1), Verdict)


@pytest.mark.parametrize("length", [0, 11, 33, 64])
def test_a_challenge_has_a_nonce_of_12_to_32_bytes(length: int) -> None:
    for possible in (NONCE_LENGTHS[0], NONCE_LENGTHS[-1]):
        decode(encode(Challenge(nonce=bytes(possible), lifetime=1)), Challenge)
    with pytest.raises(EvidenceError, match="malformed Challenge: expected `bytes`"):
        decode(encode(Challenge(nonce=bytes(length), lifetime=1)), Challenge)


@pytest.mark.parametrize("lifetime", [0, -1, 86401, 1.5])
def test_a_challenge_is_good_for_a_second_to_a_day(lifetime: float) -> None:
    body = {"nonce": "A" * 16, "lifetime": lifetime}
    with pytest.raises(EvidenceError, match="malformed Challenge"):
        decode(json.dumps(body).encode(), Challenge)


@pytest.mark.parametrize(
    "wrong", [{"check": 0}, {"check": 10}, {"state": "well"}, {"reason": "x" * 2049}, {"differences": [""] * 1025}]
)
def test_a_verdict_out_of_its_bounds_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match="malformed Verdict"):
        decode(json.dumps(json.loads(encode(VERDICT)) | wrong).encode(), Verdict)


@given(st.binary(max_size=200))
def test_any_bytes_are_evidence_or_our_error(body: bytes) -> None:
    with pytest.raises(EvidenceError):
        decode_evidence(body)


@given(st.data())
def test_damaged_evidence_is_evidence_or_our_error(draw: st.DataObject) -> None:
    body = encode(EVIDENCE)
    at = draw.draw(st.integers(0, len(body) - 1))
    wrong = draw.draw(st.binary(min_size=1, max_size=4))
    try:
        found = decode_evidence(body[:at] + wrong + body[at + len(wrong) :])
    except EvidenceError:
        return
    assert set(found.pcrs) <= {"sha1", "sha256", "sha384", "sha512"}


def test_whoever_only_sends_messages_reads_no_tpm_data() -> None:
    program = "import sys, tpm_mtls.attestation.messages; print('tpm2_pytss' in sys.modules, 'click' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout == "False False\n"
