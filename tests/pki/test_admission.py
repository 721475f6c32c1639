"""Checks 8 and 9 as a table: which device a proved TPM is, and who has to agree."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from support.authority import NOW
from support.evidence import SoftwareTpm, good_case, new_root
from tpm_mtls.device_names import check_device_name
from tpm_mtls.evidence_checks import Residency
from tpm_mtls_pki.admission import (
    DeviceFacts,
    Name,
    TpmFacts,
    ek_device_name,
    judge_device,
    judge_downgrade,
    name_device,
)
from tpm_mtls_pki.allow_list import Entry
from tpm_mtls_pki.approvals import Approval, State
from tpm_mtls_pki.attestations import Attestation
from tpm_mtls_pki.groups import ApprovalRule, Group, Naming
from tpm_mtls_pki.policy import Permit, Reason, Refusal
from tpm_mtls_pki.tokens import Token

HOUR = timedelta(hours=1)
TPM = SoftwareTpm()
VERDICT = good_case(TPM, new_root()).judge()
OTHER = "f" * 64
TOKEN = Token(7, "dev", NOW - HOUR, NOW + HOUR, revoked_at=None, used_at=None, key_digest=None, serial=None)
BY_TOKEN = Permit("dev", "token 7", TOKEN)
BY_CERTIFICATE = Permit("dev", "certificate 0a")
GROUP = Group("default")
FREE = Group("default", approval=ApprovalRule.NEVER)
LISTED = Entry(TPM.ek_hash, "dev")
FACTS = TpmFacts(None, GROUP)
EARLIER = Attestation(
    "0a", "dev", "d" * 64, VERDICT.key.name.hex(), VERDICT.ak.name.hex(), TPM.ek_hash, "CN=Maker Root", Residency.FIXED
)


def approval(state: State, device: str | None = None) -> Approval:
    return Approval(3, TPM.ek_hash, "asked", "CN=Maker Root", NOW, state, NOW, device)


def facts(**changes: Any) -> TpmFacts:  # noqa: ANN401 - fields
    return dataclasses.replace(FACTS, **changes)


def judge(
    name: Name = Name("dev", settled=True),  # noqa: B008 - frozen
    tpm: TpmFacts = FACTS,
    device: DeviceFacts = DeviceFacts(),  # noqa: B008 - frozen
    *,
    claim: Permit | None = None,
    **changes: Any,  # noqa: ANN401 - of the verdict
) -> Permit | Refusal | None:
    return judge_device(dataclasses.replace(VERDICT, **changes), name, tpm, device, claim=claim)


# --- names


@pytest.mark.parametrize(
    ("tpm", "claim", "device"),
    [
        (facts(), BY_TOKEN, "dev"),
        (facts(), BY_CERTIFICATE, "dev"),
        (facts(device="dev"), None, "dev"),
        (facts(entry=LISTED), None, "dev"),
        (facts(approval=approval(State.GRANTED, "dev")), None, "dev"),
        (facts(device="dev", entry=LISTED), BY_CERTIFICATE, "dev"),
        (facts(entry=Entry(TPM.ek_hash)), None, None),
        (facts(approval=approval(State.WAITING)), None, None),
    ],
)
def test_a_device_is_called_what_somebody_said_it_is(tpm: TpmFacts, claim: Permit | None, device: str | None) -> None:
    """Or else after its endorsement key (none)."""
    wanted = device or f"ek-{TPM.ek_hash[:40]}"
    assert name_device(VERDICT, tpm, claim=claim, asked="evil") == Name(wanted, settled=True)


def test_a_name_is_asked_for_only_where_the_group_says_so() -> None:
    asked = facts(group=Group("default", naming=Naming.ASKED))
    assert name_device(VERDICT, asked, claim=None, asked="dev") == Name("dev", settled=False)
    assert name_device(VERDICT, asked, claim=None, asked=None) == Name(None, settled=False)
    assert name_device(VERDICT, asked, claim=BY_TOKEN, asked="evil") == Name("dev", settled=True)


def test_a_name_from_the_endorsement_key_is_a_device_name() -> None:
    assert check_device_name(ek_device_name("0" * 64)) == "ek-" + "0" * 40


@pytest.mark.parametrize(
    ("tpm", "claim", "check"),
    [
        (facts(device="other"), BY_TOKEN, 8),
        (facts(entry=Entry(TPM.ek_hash, "other")), BY_TOKEN, 8),
        (facts(approval=approval(State.GRANTED, "other")), BY_TOKEN, 8),
        (facts(device="other", entry=LISTED), None, 8),
        (facts(device="other"), BY_CERTIFICATE, 9),
    ],
)
def test_8_a_tpm_that_is_one_device_is_no_other(tpm: TpmFacts, claim: Permit | None, check: int) -> None:
    decision = name_device(VERDICT, tpm, claim=claim, asked=None)
    assert isinstance(decision, Refusal)
    assert (decision.reason, decision.check) == (Reason.TPM_OF_ANOTHER, check)


# --- bindings


def test_8_a_device_of_one_tpm_is_of_no_other() -> None:
    assert isinstance(judge(claim=BY_TOKEN, device=DeviceFacts(holder=TPM.ek_hash, was_bound=True)), Permit)
    taken = DeviceFacts(holder=OTHER, was_bound=True)
    assert judge(claim=BY_TOKEN, device=taken) == Refusal(Reason.DEVICE_OF_ANOTHER, "dev", 8)
    assert judge(tpm=facts(entry=LISTED), device=taken) == Refusal(Reason.DEVICE_OF_ANOTHER, "dev", 8)
    assert judge(claim=BY_CERTIFICATE, device=taken) == Refusal(Reason.DEVICE_OF_ANOTHER, "dev", 9)


def test_9_a_certificate_from_before_the_release_is_no_claim_to_the_name() -> None:
    """A token is: the administrator made it."""
    released = DeviceFacts(holder=None, was_bound=True)
    assert judge(claim=BY_CERTIFICATE, device=released) == Refusal(Reason.DEVICE_OF_ANOTHER, "dev", 9)
    assert judge(claim=BY_TOKEN, device=released) == BY_TOKEN
    assert judge(claim=BY_CERTIFICATE) == BY_CERTIFICATE  # never bound: enrolled without evidence before


def test_9_what_was_proved_about_a_key_stays() -> None:
    same = DeviceFacts(holder=TPM.ek_hash, was_bound=True, was_fixed=True, earlier=[EARLIER])
    assert judge(claim=BY_CERTIFICATE, device=same) == BY_CERTIFICATE
    others = (dataclasses.replace(EARLIER, ek_hash=OTHER), dataclasses.replace(EARLIER, key_name="000b" + "0" * 64))
    for other in others:
        moved = dataclasses.replace(same, earlier=[EARLIER, other])
        assert judge(claim=BY_CERTIFICATE, device=moved) == Refusal(Reason.KEY_MOVED, "dev", 9)


def test_8_a_device_with_a_key_of_its_tpm_takes_no_imported_one() -> None:
    known = DeviceFacts(holder=TPM.ek_hash, was_bound=True, was_fixed=True)
    wanted = Refusal(Reason.DOWNGRADE, "dev", 8)
    assert judge(tpm=facts(device="dev"), device=known, residency=Residency.IMPORTED) == wanted
    imported = dataclasses.replace(known, was_fixed=False)
    assert isinstance(judge(tpm=facts(device="dev"), device=imported, residency=Residency.IMPORTED), Permit)


def test_8_no_evidence_from_a_device_that_had_some_is_a_downgrade() -> None:
    assert judge_downgrade(BY_TOKEN, was_bound=False, renewal=False) is None
    assert judge_downgrade(BY_TOKEN, was_bound=True, renewal=False) == Refusal(Reason.DOWNGRADE, "dev", 8)
    assert judge_downgrade(BY_CERTIFICATE, was_bound=True, renewal=True) == Refusal(Reason.DOWNGRADE, "dev", 9)


def test_1_an_entry_that_was_taken_off_the_list_meanwhile_counts_no_more() -> None:
    assert isinstance(judge(tpm=facts(entry=LISTED), endorsed_by="allow-list"), Permit)
    assert judge(tpm=facts(device="dev"), endorsed_by="allow-list") == Refusal(Reason.EVIDENCE_REFUSED, "dev", 1)


# --- approval

NAMELESS = Name(None, settled=False)
ASKED = Name("dev", settled=False)
ALWAYS = Group("default", approval=ApprovalRule.ALWAYS)


@pytest.mark.parametrize(
    ("name", "tpm", "claim"),
    [
        (Name("dev", settled=True), facts(), None),
        (Name("dev", settled=True), facts(group=ALWAYS, entry=LISTED), None),
        (Name("dev", settled=True), facts(group=ALWAYS), BY_TOKEN),
        (ASKED, facts(group=FREE), None),
        (ASKED, facts(group=FREE, entry=LISTED), None),
        (ASKED, facts(approval=approval(State.WAITING)), None),
        (NAMELESS, facts(group=FREE), None),
        (NAMELESS, facts(approval=approval(State.GRANTED)), None),
    ],
)
def test_a_first_certificate_waits_for_approval(name: Name, tpm: TpmFacts, claim: Permit | None) -> None:
    assert judge(name, tpm, claim=claim) is None


@pytest.mark.parametrize(
    ("tpm", "claim"),
    [
        (facts(group=FREE), None),
        (facts(entry=LISTED), None),
        (facts(), BY_TOKEN),
        (facts(), BY_CERTIFICATE),
        (facts(approval=approval(State.GRANTED, "dev")), None),
        (facts(group=ALWAYS, approval=approval(State.GRANTED, "dev")), None),
        (facts(group=ALWAYS, device="dev"), None),  # it was approved once
    ],
)
def test_it_waits_no_longer_than_the_rule_says(tpm: TpmFacts, claim: Permit | None) -> None:
    wanted = claim or Permit("dev", f"tpm {TPM.ek_hash[:40]}")
    assert judge(tpm=tpm, claim=claim) == wanted


def test_a_tpm_that_was_denied_gets_nothing() -> None:
    """Whatever else speaks for it."""
    denied = approval(State.DENIED)
    assert judge(tpm=facts(approval=denied, entry=LISTED, group=FREE), claim=BY_TOKEN) == Refusal(Reason.DENIED, "dev")
