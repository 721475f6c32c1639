"""The examples on docs/protocol.md are what this program reads and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tpm_mtls.attestation.health import HealthReport, decode_health, encode_health
from tpm_mtls.attestation.messages import (
    CHECKS,
    Challenge,
    DeviceState,
    HealthAnswer,
    QuoteEvidence,
    Verdict,
    decode,
    decode_evidence,
    encode,
)
from tpm_mtls.errors import EvidenceError

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
_MESSAGES = (Challenge, QuoteEvidence, Verdict, HealthReport, HealthAnswer)


def section(number: int) -> str:
    """The text below the heading of the section ``number``."""
    (text,) = re.findall(rf"^## {number}\. .*?\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    return str(text)


def read(kind: type, body: bytes) -> bytes:
    """The message of ``kind`` in ``body``, written anew."""
    if kind is QuoteEvidence:
        return encode(decode_evidence(body))
    return encode_health(decode_health(body)) if kind is HealthReport else encode(decode(body, kind))


@pytest.mark.parametrize("number", range(len(_MESSAGES)), ids=[kind.__name__ for kind in _MESSAGES])
def test_each_message_of_attestation_has_an_example_that_is_one(number: int) -> None:
    examples = re.findall(r"```json\n(.*?)```", section(10), re.DOTALL)
    assert len(examples) == len(_MESSAGES)
    kind, example = _MESSAGES[number], json.loads(examples[number])
    assert json.loads(read(kind, json.dumps(example).encode())) == example
    with pytest.raises(EvidenceError, match="unknown field"):
        read(kind, json.dumps(example | {"another": 1}).encode())


def test_all_members_of_a_quote_are_described() -> None:
    described = re.findall(r"^\| `(\w+)` \|", section(10), re.MULTILINE)
    assert described == [name for name in QuoteEvidence.__struct_fields__ if name != "format"]


def test_the_nine_checks_are_listed_under_their_numbers() -> None:
    listed = re.findall(r"^\| (\d) \| .* \| .+ \|$", section(11), re.MULTILINE)
    assert list(map(int, listed)) == sorted(CHECKS)


def test_all_states_are_described() -> None:
    assert re.findall(r"^\| `(\w+)` \|", section(12), re.MULTILINE) == list(DeviceState)
