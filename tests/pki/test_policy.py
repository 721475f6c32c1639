"""The decisions as a table: who may have a certificate, and with which key."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from support.authority import NOW
from tpm_mtls_pki.policy import (
    Again,
    Applicant,
    Permit,
    Reason,
    Refusal,
    authorize_enrollment,
    authorize_renewal,
    is_withdrawn,
    judge_key,
    judge_key_use,
)
from tpm_mtls_pki.records import KEY_COMPROMISE, Record
from tpm_mtls_pki.tokens import Token

HOUR = timedelta(hours=1)
TOKEN = Token(7, "dev", NOW - HOUR, NOW + HOUR, revoked_at=None, used_at=None, key_digest=None, serial=None)
USED = dataclasses.replace(TOKEN, used_at=NOW - HOUR, key_digest="k", serial="0a")
RECORD = Record("0a", "device", "dev", "k", NOW - HOUR, NOW + HOUR, "token 7", b"", revoked_at=None, reason=None)
WITH_TOKEN = Applicant(user="dev", token=TOKEN, has_certificate=False, current=None)
WITH_CERTIFICATE = Applicant(user=None, token=None, has_certificate=True, current=RECORD)


def token(**changes: object) -> Applicant:
    return dataclasses.replace(WITH_TOKEN, token=dataclasses.replace(TOKEN, **changes))  # type: ignore[arg-type]


def certificate(**changes: object) -> Applicant:
    changed = dataclasses.replace(RECORD, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(WITH_CERTIFICATE, current=changed)


def test_a_good_token_permits_its_device() -> None:
    assert authorize_enrollment(WITH_TOKEN, now=NOW) == Permit("dev", "token 7", TOKEN)


@pytest.mark.parametrize(
    ("applicant", "reason"),
    [
        (Applicant(None, None, has_certificate=False, current=None), Reason.NO_CREDENTIALS),
        (dataclasses.replace(WITH_TOKEN, token=None), Reason.TOKEN_UNKNOWN),
        (dataclasses.replace(WITH_CERTIFICATE, user="dev"), Reason.TOKEN_UNKNOWN),
        (dataclasses.replace(WITH_TOKEN, user="Dev"), Reason.TOKEN_OF_ANOTHER),
        (token(revoked_at=NOW), Reason.TOKEN_REVOKED),
        (token(expires_at=NOW), Reason.TOKEN_EXPIRED),
    ],
)
def test_enrollment_is_refused(applicant: Applicant, reason: Reason) -> None:
    decision = authorize_enrollment(applicant, now=NOW)
    assert isinstance(decision, Refusal)
    assert decision.reason == reason


def test_a_good_certificate_permits_its_device() -> None:
    wanted = Permit("dev", "certificate 0a")
    assert authorize_renewal(WITH_CERTIFICATE, now=NOW) == wanted
    assert authorize_enrollment(WITH_CERTIFICATE, now=NOW) == wanted


@pytest.mark.parametrize(
    ("applicant", "reason"),
    [
        (WITH_TOKEN, Reason.NO_CREDENTIALS),
        (dataclasses.replace(WITH_CERTIFICATE, current=None), Reason.CERTIFICATE_UNKNOWN),
        (certificate(profile="server"), Reason.NOT_A_DEVICE),
        (certificate(profile="operator"), Reason.NOT_A_DEVICE),
        (certificate(revoked_at=NOW), Reason.CERTIFICATE_REVOKED),
        (certificate(not_after=NOW - timedelta(seconds=1)), Reason.CERTIFICATE_EXPIRED),
    ],
)
def test_renewal_is_refused(applicant: Applicant, reason: Reason) -> None:
    decision = authorize_renewal(applicant, now=NOW)
    assert isinstance(decision, Refusal)
    assert decision.reason == reason


def test_a_used_token_answers_the_same_key_only() -> None:
    permit = Permit("dev", "token 7", USED)
    facts = {"ca_keys": (), "now": NOW}
    assert judge_key(permit, key_digest="k", known=[RECORD], **facts) == Again("0a")  # type: ignore[arg-type]
    refusal = Refusal(Reason.TOKEN_USED, "dev")
    for known in ([], [dataclasses.replace(RECORD, serial="0b")], [dataclasses.replace(RECORD, revoked_at=NOW)]):
        assert judge_key(permit, key_digest="k", known=known, **facts) == refusal  # type: ignore[arg-type]


def test_an_unused_token_permits_a_free_key() -> None:
    permit = Permit("dev", "token 7", TOKEN)
    assert judge_key(permit, key_digest="k", known=[RECORD], ca_keys=["c"], now=NOW) == permit
    refused = judge_key(permit, key_digest="c", known=[], ca_keys=["c"], now=NOW)
    assert refused == Refusal(Reason.KEY_OF_CA, "dev")


@pytest.mark.parametrize(
    ("profile", "subject", "record", "reason"),
    [
        ("device", "dev", RECORD, None),
        ("device", "dev2", RECORD, Reason.KEY_OF_ANOTHER),
        ("server", "dev", RECORD, Reason.KEY_OF_ANOTHER),
        ("device", "dev", dataclasses.replace(RECORD, reason=KEY_COMPROMISE), Reason.KEY_COMPROMISED),
        ("device", "dev", dataclasses.replace(RECORD, reason="superseded"), None),
    ],
)
def test_a_key_has_one_owner(profile: str, subject: str, record: Record, reason: Reason | None) -> None:
    assert judge_key_use(profile, subject, key_digest="k", known=[record], ca_keys=()) == reason


OLD = dataclasses.replace(RECORD, not_before=NOW - 3 * HOUR)


@pytest.mark.parametrize(
    ("known", "withdrawn"),
    [
        ([], False),
        ([RECORD], False),
        ([dataclasses.replace(RECORD, revoked_at=NOW, reason="unspecified")], True),
        ([dataclasses.replace(RECORD, revoked_at=NOW, reason="superseded")], False),
        ([dataclasses.replace(RECORD, revoked_at=NOW, reason="unspecified"), RECORD], True),
        ([dataclasses.replace(OLD, revoked_at=NOW, reason="unspecified"), RECORD], False),
        ([OLD, dataclasses.replace(RECORD, revoked_at=NOW, reason="unspecified")], True),
        ([dataclasses.replace(RECORD, profile="attestation", revoked_at=NOW, reason="unspecified")], False),
        ([dataclasses.replace(OLD, revoked_at=NOW, reason="unspecified")], False),
    ],
)
def test_a_revocation_keeps_a_tpm_out(known: list[Record], *, withdrawn: bool) -> None:
    """Of its newest certificate, since it is bound."""
    assert is_withdrawn(known, since=NOW - 2 * HOUR) == withdrawn
