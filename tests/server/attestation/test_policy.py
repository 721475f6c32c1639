"""Check 9: what a machine may boot, in each of the four ways to say it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.judgements import NOW, changed_pcr
from support.policies import RECORDED, Operator
from support.quotes import some_values
from tpm_mtls.policy.document import PolicyNv, PolicyOr
from tpm_mtls.policy.states import state_of
from tpm_mtls_server.attestation import Approve, BootState, Learn, Signed, Values
from tpm_mtls_server.attestation.policy import judge_policy

if TYPE_CHECKING:
    from pathlib import Path

    from support.quotes import Values as PcrValues
    from tpm_mtls.policy.states import MachineState
    from tpm_mtls_server.attestation import Policy
    from tpm_mtls_server.attestation.policy import Finding

VALUES = some_values(count=16)
BASELINE = BootState(VALUES, None, NOW - timedelta(days=1))
COUNTER = PolicyNv(index="0x01500010", name="000b" + "00" * 32, operand="00" * 7 + "03")


def judged(
    policy: Policy, values: PcrValues = VALUES, baseline: BootState | None = None, *, ima: bool = False
) -> Finding:
    return judge_policy(policy, values, baseline, ima=ima)


def differing(finding: Finding) -> list[int]:
    """The PCRs that differ; nothing else is wrong."""
    assert len(finding.differs) == len(finding.obstacles)
    return [each.pcr for each in finding.differs]


def state(values: PcrValues = VALUES, *pcrs: int, description: str = "") -> MachineState:
    chosen = {pcr: values["sha256"][pcr] for pcr in pcrs or range(16)}
    return state_of({"sha256": chosen}, now=RECORDED, description=description)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_learning_takes_the_first_quote_and_holds_later_ones_against_it() -> None:
    first = judged(Learn())
    assert first.holds
    assert first.learns
    later = judged(Learn(), baseline=BASELINE)
    assert later.holds
    assert not later.learns
    assert differing(judged(Learn(), changed_pcr(VALUES, 7), BASELINE)) == [7]


def test_without_an_approval_nothing_passes() -> None:
    waiting = judged(Approve())
    assert (waiting.holds, waiting.waits, waiting.learns) == (False, True, False)
    assert judged(Approve(), baseline=BASELINE).holds
    assert differing(judged(Approve(), changed_pcr(VALUES, 7), BASELINE)) == [7]


@pytest.mark.parametrize("policy", [Learn, Approve])
@pytest.mark.parametrize("pcr", range(16))
def test_every_pcr_counts_unless_others_are_chosen(policy: type[Learn | Approve], pcr: int) -> None:
    values = changed_pcr(VALUES, pcr)
    assert differing(judged(policy(), values, BASELINE)) == [pcr]
    assert judged(policy(tuple(each for each in range(16) if each != pcr)), values, BASELINE).holds
    assert differing(judged(policy((pcr,)), values, BASELINE)) == [pcr]


def test_pcr_10_is_not_compared_where_an_ima_list_leads_to_it() -> None:
    values = changed_pcr(VALUES, 10)
    assert judged(Learn(), values, BASELINE, ima=True).holds
    assert differing(judged(Learn(), values, BASELINE)) == [10]
    assert differing(judged(Learn(), changed_pcr(values, 9), BASELINE, ima=True)) == [9]


def test_a_baseline_without_a_pcr_that_counts_does_not_do() -> None:
    without = BootState({"sha256": {pcr: VALUES["sha256"][pcr] for pcr in range(8)}}, None, NOW)
    assert [str(each) for each in judged(Learn((7, 8)), baseline=without).obstacles] == ["PCR 8 is not in the baseline"]
    other_bank = BootState({"sha1": {0: bytes(20)}}, None, NOW)
    assert not judged(Learn((0,)), baseline=other_bank).holds
    assert [str(each) for each in judged(Learn((17,)), baseline=BASELINE).obstacles] == ["PCR 17 is not in the quote"]


def test_one_of_several_states_will_do() -> None:
    other = changed_pcr(changed_pcr(VALUES, 4), 9)
    policy = Values((state(other, description="image B"), state(description="image A")))
    assert judged(policy).holds
    assert judged(policy).standard == "the values 'image A' of 2026-11-22T03:00:00Z"
    assert judged(policy, other).holds
    near = judged(policy, changed_pcr(other, 7))
    assert differing(near) == [7]
    assert "image B" in near.standard


@pytest.mark.parametrize("pcr", range(16))
def test_only_the_pcrs_of_a_state_are_compared(pcr: int) -> None:
    values = changed_pcr(VALUES, pcr)
    assert judged(Values((state(),)), VALUES).holds
    assert differing(judged(Values((state(),)), values)) == [pcr]
    assert judged(Values((state(VALUES, (pcr + 1) % 16),)), values).holds


def test_without_values_nothing_passes() -> None:
    assert [str(each) for each in judged(Values(())).obstacles] == ["there are no values to hold the quote against"]
    nothing = msgspec.structs.replace(state(), pcrs=())
    assert judged(Values((nothing,))).standard == "the values of nobody knows when"


def test_a_value_that_was_not_quoted_does_not_pass() -> None:
    """A TPM quotes the bank sha256; whoever wants another one, or PCR 17, gets no answer rather than a good one."""
    others = state_of({"sha1": {0: bytes(20)}, "sha256": {17: bytes(32)}}, now=RECORDED)
    assert [str(each) for each in judged(Values((others,))).obstacles] == [
        "PCR 0 of the bank sha1 is wanted, but was not quoted",
        "PCR 17 of the bank sha256 is wanted, but was not quoted",
    ]
    both = judged(Values((others, state())), changed_pcr(VALUES, 3))
    assert differing(both) == [3], "what can be judged is told rather than what cannot"


def test_a_signed_state_passes(operator: Operator) -> None:
    policy = Signed((operator.signer,), (operator.sign(*state().pcrs, description="release 7", version=7),))
    assert judged(policy).holds
    assert judged(policy).standard == "the signed policy 'release 7', version 7"
    assert differing(judged(policy, changed_pcr(VALUES, 11))) == [11]


def test_one_of_several_signed_states_will_do(operator: Operator) -> None:
    other = changed_pcr(VALUES, 4)
    policy = Signed((operator.signer,), (operator.sign(*state(other).pcrs), operator.sign(*state().pcrs)))
    assert judged(policy).holds
    assert judged(policy, other).holds
    either = (PolicyOr(branches=(state(other).pcrs, state().pcrs)),)
    assert judged(Signed((operator.signer,), (operator.sign(*either),))).holds


def test_a_counter_is_the_device_s_affair(operator: Operator) -> None:
    signed = operator.sign(*state().pcrs, COUNTER, version=3)
    assert judged(Signed((operator.signer,), (signed,))).holds
    assert not judged(Signed((operator.signer,), (signed,)), changed_pcr(VALUES, 0)).holds


def test_only_what_a_known_operator_signed_counts(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Operator(tmp_path / "other")
    signed = other.sign(*state().pcrs)
    assert judged(Signed((operator.signer, other.signer), (signed,))).holds
    stranger = judged(Signed((operator.signer,), (signed,)))
    assert f"is signed by a key that does not count: {other.signer.name}" in str(stranger.obstacles[0])
    assert [str(each) for each in judged(Signed((operator.signer,), ())).obstacles] == [
        "there are no signed policies to hold the quote against"
    ]


def test_a_signed_policy_that_was_changed_does_not_count(operator: Operator) -> None:
    signed = operator.sign(*state(changed_pcr(VALUES, 4)).pcrs)
    forged = msgspec.structs.replace(signed, policy=state().pcrs)
    assert "was changed after it was signed" in str(judged(Signed((operator.signer,), (forged,))).obstacles[0])
    flipped = msgspec.structs.replace(
        signed, signature=signed.signature[:-1] + "0123456789abcdef"[int(signed.signature[-1], 16) ^ 1]
    )
    assert "signature of" in str(judged(Signed((operator.signer,), (flipped,))).obstacles[0])
    posing = msgspec.structs.replace(operator.sign(*state().pcrs), policy_ref="00")
    assert not judged(Signed((operator.signer,), (posing,))).holds


def test_a_boot_state_goes_through_a_registry() -> None:
    found = BootState.of_hex(BASELINE.hex_pcrs(), b"log", at=BASELINE.at)
    assert (found.pcrs, found.event_log, found.recorded) == (VALUES, b"log", BASELINE.recorded)
