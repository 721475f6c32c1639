"""Health reports as they come from outside: what is too much, or not one, is refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.attestation.health import (
    HEALTH_LIMIT,
    TEXT_LIMIT,
    Caution,
    Check,
    Failure,
    HealthReport,
    decode_health,
    encode_health,
    shortened,
)
from tpm_mtls.errors import EvidenceError

REPORT = HealthReport(
    time=1_795_312_800,
    checks=(Check(name="wrap", outcome="passed", seconds=0.5), Check(name="quote", outcome="skipped")),
    failures=(Failure(kind="EncFailure", reason="it does not wrap", hint="replace it"),),
    warnings=(Caution(kind="Lockout", text="locked", hint="wait"),),
)


def test_a_report_survives_its_encoding() -> None:
    assert decode_health(encode_health(REPORT)) == REPORT
    assert REPORT.maintenance
    assert not HealthReport(time=0).maintenance


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("format", 2),
        ("time", -1),
        ("time", "now"),
        ("is_tpm", None),
        ("checks", [{"name": "wrap", "outcome": "maybe"}]),
        ("checks", [{"name": "wrap", "outcome": "passed", "seconds": -1}]),
        ("failures", [{"kind": "OtherFailure", "reason": "", "hint": ""}]),
        ("failures", [{"kind": "EncFailure", "reason": "x" * (TEXT_LIMIT + 1), "hint": ""}]),
        ("failures", [{"kind": "EncFailure", "reason": "", "hint": ""}] * 9),
        ("warnings", [{"kind": "Lockout", "text": ""}]),
        ("condition", {"vendor": "IFX"}),
        ("secret", "x"),
    ],
)
def test_a_report_with_one_member_wrong_is_refused(member: str, value: Any) -> None:  # noqa: ANN401 - any JSON
    data = json.loads(encode_health(REPORT)) | {member: value}
    with pytest.raises(EvidenceError, match="the health report is malformed"):
        decode_health(json.dumps(data).encode())


def test_an_oversized_report_is_refused_unread() -> None:
    with pytest.raises(EvidenceError, match="more than 65536 bytes"):
        decode_health(b" " * (HEALTH_LIMIT + 1))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_report_or_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        decode_health(data)


@given(st.text(max_size=3 * TEXT_LIMIT))
def test_any_reason_fits_into_a_report_and_on_one_line(text: str) -> None:
    reason = shortened(text)
    assert len(reason) <= TEXT_LIMIT
    assert len(reason.splitlines()) <= 1
    failure = Failure(kind="SignFailure", reason=reason, hint="")
    try:
        encoded = encode_health(msgspec.structs.replace(REPORT, failures=(failure,)))
    except UnicodeEncodeError:
        return  # a lone surrogate, which no error's text has
    assert decode_health(encoded).failures == (failure,)


def test_the_largest_report_is_within_the_limit() -> None:
    text = "x" * TEXT_LIMIT
    largest = msgspec.structs.replace(
        REPORT,
        failures=(Failure(kind="TpmUnavailable", reason=text, hint=text),) * 8,
        warnings=(Caution(kind="CapabilitiesUnreadable", text=text, hint=text),) * 16,
    )
    assert decode_health(encode_health(largest)) == largest
