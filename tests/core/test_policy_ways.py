"""The ways through a policy, before a TPM is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.policies import Operator, pcr_policy
from tpm_mtls.errors import PolicyError
from tpm_mtls.policy.counters import not_beyond
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthValue, PolicyOr
from tpm_mtls.policy.files import FoundPolicy
from tpm_mtls.policy.ways import (
    WAYS_LIMIT,
    JoinBranches,
    ProveApproval,
    ProveAuthorization,
    ProveNv,
    ProvePcrs,
    needs_authorization,
    ways_through,
)

if TYPE_CHECKING:
    from tpm_mtls.policy.document import SignedPolicy

ONE, OTHER = pcr_policy({7: "11" * 32}), pcr_policy({7: "22" * 32})
ELSEWHERE = pcr_policy({4: "33" * 32})
PATH = Path("newest.signed-policy.json")


def test_a_fixed_policy_is_one_way_and_the_tpm_says_whether_it_holds() -> None:
    assert ways_through((ONE, PolicyAuthValue()), ()) == [(ProvePcrs("sha256", (7,), b""), ProveAuthorization())]


def test_branches_about_the_same_pcrs_are_one_way_and_others_are_not() -> None:
    policy = (PolicyOr(branches=((ONE,), (OTHER,), (ELSEWHERE,))), PolicyAuthValue())
    join = JoinBranches((policy_digest((ONE,)), policy_digest((OTHER,)), policy_digest((ELSEWHERE,))))
    assert ways_through(policy, ()) == [
        (ProvePcrs("sha256", (7,), b""), join, ProveAuthorization()),
        (ProvePcrs("sha256", (4,), b""), join, ProveAuthorization()),
    ]


def test_a_signed_policy_is_proved_early_and_only_if_it_is_meant(tmp_path: Path) -> None:
    operator, stranger = Operator(tmp_path), Operator(tmp_path)
    counter = not_beyond(0x01500100, 3)
    new = operator.sign(ONE, counter, version=3, policy_ref=b"disk")
    old = operator.sign(OTHER, version=2, policy_ref=b"disk")
    signed = [
        FoundPolicy(PATH, each)
        for each in (
            new,
            old,
            operator.sign(ONE),
            stranger.sign(ONE, policy_ref=b"disk"),
        )
    ]

    def approved(policy: SignedPolicy) -> ProveApproval:
        return ProveApproval(operator.signer, b"disk", bytes.fromhex(policy.digest), bytes.fromhex(policy.signature))

    assert ways_through((operator.authorize(b"disk"),), signed) == [
        (ProvePcrs("sha256", (7,), bytes.fromhex(ONE.digest)), ProveNv(counter), approved(new)),
        (ProvePcrs("sha256", (7,), bytes.fromhex(OTHER.digest)), approved(old)),
    ]


def test_a_wrong_signed_policy_is_left_out_and_told_if_there_is_no_other(tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    good = operator.sign(ONE)
    changed = msgspec.structs.replace(good, policy=(OTHER,))
    forged = msgspec.structs.replace(good, signature=good.signature[:-2] + "00")
    policy = (operator.authorize(),)
    assert len(ways_through(policy, [FoundPolicy(PATH, each) for each in (changed, forged, good)])) == 1
    with pytest.raises(PolicyError, match=r"newest.signed-policy.json was changed after it was signed"):
        ways_through(policy, [FoundPolicy(PATH, changed)])
    with pytest.raises(PolicyError, match=r"the signature of newest.signed-policy.json is wrong"):
        ways_through(policy, [FoundPolicy(PATH, forged)])


def test_that_no_signed_policy_is_there_is_told_with_its_signer(tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    with pytest.raises(PolicyError, match=f"there is no policy signed by {operator.signer.name}") as refusal:
        ways_through((operator.authorize(),), ())
    assert "tpm-mtls policy install" in refusal.value.hint


def test_there_is_a_limit_of_ways(tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    signed = [FoundPolicy(PATH, operator.sign(pcr_policy({7: f"{number:064x}"}))) for number in range(WAYS_LIMIT + 1)]
    assert len(ways_through((operator.authorize(),), signed)) == WAYS_LIMIT


def test_an_or_in_the_midst_would_not_count() -> None:
    with pytest.raises(PolicyError, match="what comes before an or, or an authorize, would not count"):
        ways_through((ONE, PolicyOr(branches=((ONE,), (OTHER,)))), ())


def test_whether_the_authorization_value_is_needed_is_looked_for_in_branches_too() -> None:
    assert needs_authorization((ONE, PolicyAuthValue()))
    assert needs_authorization((PolicyOr(branches=((ONE,), (OTHER, PolicyAuthValue()))),))
    assert not needs_authorization((PolicyOr(branches=((ONE,), (OTHER,))),))
