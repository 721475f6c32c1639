"""Whether a policy holds now, and which PCR differs from when; and recorded states of machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.policies import RECORDED, ZEROS, Operator, extend, pcr_policy, present_state
from tpm_mtls.errors import (
    AlgorithmUnsupportedError,
    HandleOccupiedError,
    PemError,
    PolicyError,
    StateError,
    StorageError,
    UsageError,
)
from tpm_mtls.policy.check import Outdated, PcrDiffers, Present, Verdict, judge, wanted
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond
from tpm_mtls.policy.document import LIMIT, Assertion, PolicyAuthValue, PolicyOr, PolicyPcr, pcr_digest
from tpm_mtls.policy.files import FoundPolicy
from tpm_mtls.policy.key_policy import check_now
from tpm_mtls.policy.states import MachineState, any_of, parse_selection, parse_state, read_state, read_state_file
from tpm_mtls.policy.words import in_words
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm
    from tpm_mtls.policy.document import SignedPolicy

ONES = "11" * 32
TWOS = "22" * 32


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def present(values: dict[int, str] | None = None, counter: int | None = None) -> Present:
    pcrs = {pcr: bytes.fromhex(value) for pcr, value in (values or {}).items()}
    return Present({"sha256": pcrs} if pcrs else {}, {DEFAULT_COUNTER: counter})


def found(*signed: SignedPolicy) -> list[FoundPolicy]:
    return [FoundPolicy(Path(f"{each.version}.signed-policy.json"), each) for each in signed]


def test_pcrs_that_differ_are_told_with_both_values_and_the_time() -> None:
    policy = [pcr_policy({0: ZEROS, 4: ONES, 7: ONES})]
    assert judge(policy, present({0: ZEROS, 4: ONES, 7: ONES}), ()).holds
    verdict = judge(policy, present({0: ZEROS, 4: TWOS, 7: ZEROS}), ())
    assert not verdict.holds
    assert verdict.obstacles == (
        PcrDiffers("sha256", 4, ONES, TWOS, "2026-11-22T03:00:00Z"),
        PcrDiffers("sha256", 7, ONES, ZEROS, "2026-11-22T03:00:00Z"),
    )
    assert str(verdict.obstacles[0]) == f"PCR 4 (sha256) differs: {ONES} on 2026-11-22T03:00:00Z, {TWOS} now"


def test_a_bank_that_the_tpm_does_not_keep_is_told() -> None:
    verdict = judge([pcr_policy()], present(), ())
    assert [str(each) for each in verdict.obstacles] == ["PCR 7: this TPM keeps no bank sha256"]


def test_the_authorization_value_is_no_obstacle_but_needed() -> None:
    assert judge([PolicyAuthValue()], present(), ()) == Verdict(needs_authorization=True)


def test_of_several_states_the_nearest_is_told() -> None:
    far, near = (pcr_policy({0: TWOS, 7: TWOS}),), (pcr_policy({0: ONES, 7: TWOS}),)
    policy = [PolicyOr(branches=(far, near))]
    verdict = judge(policy, present({0: ONES, 7: ONES}), ())
    assert verdict.obstacles == (PcrDiffers("sha256", 7, TWOS, ONES, "2026-11-22T03:00:00Z"),)
    assert judge(policy, present({0: TWOS, 7: TWOS}), ()).holds


@pytest.mark.parametrize(
    ("counter", "words"),
    [
        (4, None),
        (5, None),
        (6, "version 5 is outdated: the counter 0x01500100 stands at 6"),
        (None, "the counter 0x01500100 is not in this TPM"),
    ],
)
def test_a_counter_that_is_beyond_the_version_or_missing_is_told(counter: int | None, words: str | None) -> None:
    verdict = judge([not_beyond(DEFAULT_COUNTER, 5)], present(counter=counter), ())
    assert [str(each) for each in verdict.obstacles] == ([words] if words else [])


def test_the_signed_policy_that_applies_is_told(operator: Operator) -> None:
    old = operator.sign(pcr_policy({7: ONES}), version=4)
    new = operator.sign(pcr_policy({7: TWOS}), version=5)
    other = operator.sign(pcr_policy({7: ONES}), version=9, policy_ref=b"mail")
    policy = [operator.authorize()]
    verdict = judge(policy, present({7: ONES}), found(other, new, old))
    assert verdict.holds
    assert verdict.applies is not None
    assert verdict.applies.policy == old
    assert not judge(policy, present({7: ZEROS}), found(other, new, old)).holds
    nothing = judge(policy, present({7: ONES}), found(other))
    assert [str(each) for each in nothing.obstacles] == [f"there is no policy signed by {operator.signer.name}"]
    assert nothing.applies is None


def test_a_signed_policy_counts_only_with_its_signature(operator: Operator) -> None:
    signed = operator.sign(pcr_policy({7: ONES}), version=4)
    forged = msgspec.structs.replace(signed, signature=operator.sign(pcr_policy({7: TWOS})).signature)
    verdict = judge([operator.authorize()], present({7: ONES}), found(forged))
    assert [str(each) for each in verdict.obstacles] == ["the signature of 4.signed-policy.json is wrong"]


def test_what_has_to_be_asked_is_all_that_matters(operator: Operator) -> None:
    signed = operator.sign(pcr_policy({4: ONES}), not_beyond(0x01500200, 3), version=3)
    other = operator.sign(pcr_policy({9: ONES}), version=3, policy_ref=b"mail")
    policy: list[Assertion] = [PolicyOr(branches=((pcr_policy(),), (operator.authorize(),))), PolicyAuthValue()]
    assert wanted(policy, found(signed, other)) == ({"sha256": {4, 7}}, {0x01500200})


def test_policies_in_words(operator: Operator) -> None:
    assert in_words([pcr_policy(), PolicyAuthValue()]) == (
        "PCR 7 (sha256) as on 2026-11-22T03:00:00Z, and the authorization value"
    )
    branches = ((pcr_policy({0: ZEROS, 7: ZEROS}),), (not_beyond(DEFAULT_COUNTER, 5),))
    assert in_words([PolicyOr(branches=branches)]) == (
        "[PCRs 0, 7 (sha256) as on 2026-11-22T03:00:00Z] or [the counter 0x01500100 at most 5]"
    )
    name = operator.signer.name
    assert in_words([operator.authorize()]) == f"what the key {name} signs"
    assert in_words([operator.authorize(b"web")]) == f"what the key {name} signs for 'web'"
    assert in_words([operator.authorize(b"\x00\xff")]) == f"what the key {name} signs for 00ff"


# --- states


def test_the_present_state_is_read_in_one_command_for_each_eight_pcrs(tpm: SimulatedTpm) -> None:
    extend(tpm, 4)
    state = present_state(tpm, "sha256:0,4,7")
    assert [pcr.pcrs for pcr in state.pcrs] == [(0, 4, 7)]
    assert state.pcrs[0].values[0] == ZEROS
    read = tpm.tool("tpm2_pcrread", "sha256:4").stdout.split("0x")[1].strip().lower()
    assert state.pcrs[0].values[4] == read
    assert state.pcrs[0].recorded == "2026-11-22T03:00:00Z"
    everything = ",".join(map(str, range(24)))
    assert len(present_state(tpm, f"sha256:{everything}").pcrs[0].values) == 24


def test_pcrs_that_change_while_they_are_read_make_no_state(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tpm(tpm.tcti) as opened:
        context = opened.pcrs._context
        read = context.pcr_read

        def read_and_extend(selection: object) -> object:
            answer = read(selection)
            extend(tpm, 7)
            return answer

        monkeypatch.setattr(context, "pcr_read", read_and_extend)
        with pytest.raises(StateError, match="the PCRs changed while they were read"):
            read_state(opened.pcrs, "sha256:0,1,2,3,4,5,6,7,8", now=RECORDED)


def test_a_bank_that_is_not_there_is_refused(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_pcrallocate", "-P", "", "sha1:none+sha256:all+sha384:none+sha512:none")
    tpm.restart()
    with pytest.raises(AlgorithmUnsupportedError, match="this TPM keeps no PCR bank sha1"):
        present_state(tpm, "sha256:7+sha1:7")
    policy = [pcr_policy(), *MachineState(pcrs=(sha1_state(),)).pcrs]
    with open_tpm(tpm.tcti) as opened:
        verdict, _ = check_now(opened, policy, [])
    assert [str(each) for each in verdict.obstacles] == ["PCR 7: this TPM keeps no bank sha1"]


def sha1_state() -> PolicyPcr:
    value = "00" * 20
    digest = pcr_digest([bytes.fromhex(value)]).hex()
    return PolicyPcr(bank="sha1", pcrs=(7,), digest=digest, values={7: value}, recorded="2026-11-22T03:00:00Z")


def test_selections_are_those_of_tpm2_tools() -> None:
    assert parse_selection("sha256:7,0,2") == {"sha256": (0, 2, 7)}
    assert parse_selection("sha1:0+sha384:23") == {"sha1": (0,), "sha384": (23,)}
    for text in ("", "sha256", "sha256:", "sha256:24", "md5:0", "sha256:0+sha256:1", "sha256:0,", "sha256:-1"):
        with pytest.raises(UsageError, match="not a selection of PCRs"):
            parse_selection(text)


def test_states_are_written_and_read(tpm: SimulatedTpm, tmp_path: Path) -> None:
    with open_tpm(tpm.tcti) as opened:
        state = read_state(opened.pcrs, "sha256:7", now=RECORDED, description="image 1")
    file = tmp_path / "state.json"
    file.write_bytes(msgspec.json.encode(state))
    assert read_state_file(file) == state
    changed = msgspec.json.encode(state).replace(b'"format":1', b'"format":2')
    with pytest.raises(PolicyError, match="has format 2, expected 1"):
        parse_state(changed, "f")
    with pytest.raises(PolicyError, match="f is no recorded state of a machine"):
        parse_state(b"{}", "f")
    with pytest.raises(PolicyError, match="it asserts nothing"):
        parse_state(b'{"pcrs":[]}', "f")
    file.write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(PemError, match="larger than"):
        read_state_file(file)
    with pytest.raises(StorageError, match="cannot read"):
        read_state_file(tmp_path / "gone")


def test_up_to_eight_different_states_may_be_allowed() -> None:
    states = [MachineState(pcrs=(pcr_policy({7: f"{number:064x}"}),)) for number in range(9)]
    assert any_of(states[:1]) == states[0].pcrs
    assert any_of([states[0], states[0]]) == states[0].pcrs
    assert any_of(states[:8]) == (PolicyOr(branches=tuple(state.pcrs for state in states[:8])),)
    for wrong in ([], states):
        with pytest.raises(UsageError, match="states of the machine are given"):
            any_of(wrong)


# --- counters


def test_a_counter_is_made_once_and_never_turned_back(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        counters = opened.counters
        assert counters.read(DEFAULT_COUNTER) is None
        assert counters.make(DEFAULT_COUNTER) == 1
        counters.increment(DEFAULT_COUNTER)
        assert counters.make(DEFAULT_COUNTER) == counters.read(DEFAULT_COUNTER) == 2
        opened.nv.remove(DEFAULT_COUNTER)
        assert counters.read(DEFAULT_COUNTER) is None
        assert counters.make(DEFAULT_COUNTER) == 3
    listed = tpm.tool("tpm2_nvreadpublic", hex(DEFAULT_COUNTER)).stdout
    assert not_beyond(DEFAULT_COUNTER, 3).name in listed
    assert "ownerwrite|nt=0x1|ownerread|authread|no_da|written" in listed


def test_a_counter_whose_making_was_cut_off_is_finished(tpm: SimulatedTpm) -> None:
    attributes = "ownerwrite|ownerread|authread|no_da|nt=counter"
    tpm.tool("tpm2_nvdefine", hex(DEFAULT_COUNTER), "-C", "o", "-s", "8", "-a", attributes)
    with open_tpm(tpm.tcti) as opened:
        assert opened.counters.read(DEFAULT_COUNTER) is None
        assert opened.counters.make(DEFAULT_COUNTER) == 1


def test_what_somebody_else_has_at_its_index_stays(tpm: SimulatedTpm) -> None:
    tpm.tool("tpm2_nvdefine", hex(DEFAULT_COUNTER), "-C", "o", "-s", "8")
    with open_tpm(tpm.tcti) as opened, pytest.raises(HandleOccupiedError, match="is occupied by something else"):
        opened.counters.make(DEFAULT_COUNTER)
    assert tpm.handles("nv-index") == ["0x1500100"]


def test_obstacles_say_what_they_are() -> None:
    assert str(Outdated(DEFAULT_COUNTER, 3, 4)) == "version 3 is outdated: the counter 0x01500100 stands at 4"
