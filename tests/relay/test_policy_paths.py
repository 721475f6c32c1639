"""A policy's alternatives become rows of commands, none of them twice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tpm_mtls_relay.messages.commands import POLICY_AUTH_VALUE, POLICY_AUTHORIZE, POLICY_NV, POLICY_OR, POLICY_PCR
from tpm_mtls_relay.policies.file import SignedPolicy, parse_key_policy
from tpm_mtls_relay.policies.paths import PATH_LIMIT, Approval, Step, paths

if TYPE_CHECKING:
    from tpm_mtls_relay.policies.paths import Path

NAME = "000b" + "ab" * 32
AUTH_VALUE = {"type": "auth-value"}
AUTHORIZE = {"type": "authorize", "signer": {"public": "0023", "name": NAME}, "policy_ref": ""}


def pcr(*pcrs: int, digest: str = "00") -> dict[str, Any]:
    return {"type": "pcr", "bank": "sha256", "pcrs": list(pcrs), "digest": digest * 32}


def nv(index: int) -> dict[str, Any]:
    operand = "0000000000000005"
    return {"type": "nv", "index": f"{index:#010x}", "name": NAME, "operation": "unsigned-le", "operand": operand}


def either(*branches: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "or", "branches": list(branches)}


def signed(*policy: dict[str, Any], signature: str = "00") -> SignedPolicy:
    fields = {"signer": NAME, "policy_ref": "", "version": 1, "digest": "ef" * 32, "signature": signature}
    return SignedPolicy({**fields, "policy": list(policy)})


def ways(*policy: dict[str, Any], approved: tuple[SignedPolicy, ...] = ()) -> list[Path]:
    data = json.dumps({"format": 1, "name": NAME, "policy": list(policy)}).encode()
    return paths(parse_key_policy(data)[1], "sha256", lambda _: list(approved))


def codes(path: Path) -> list[int]:
    return [step.code for step in path]


def test_a_plain_policy_is_one_way_that_takes_the_pcrs_as_they_are() -> None:
    (way,) = ways(pcr(0, 7), nv(0x01500100), AUTH_VALUE)
    assert codes(way) == [POLICY_PCR, POLICY_NV, POLICY_AUTH_VALUE]
    assert way[0].parameters.hex() == "000000000001000b03810000"
    assert way[1].parameters.hex() == "0008000000000000000500000009"
    assert way[2].parameters == b""


def test_states_of_the_same_pcrs_are_one_way() -> None:
    (way,) = ways(either([pcr(0, digest="aa")], [pcr(0, digest="bb")]), AUTH_VALUE)
    assert codes(way) == [POLICY_PCR, POLICY_OR, POLICY_AUTH_VALUE]
    assert way[1].parameters.startswith(bytes.fromhex("000000020020"))
    assert len(ways(either([pcr(0)], [pcr(1)], [pcr(0), AUTH_VALUE]))) == 3


def test_the_same_question_to_two_counters_is_two_ways() -> None:
    assert len(ways(either([nv(0x01500100)], [nv(0x01500101)]))) == 2


def test_a_signed_policys_pcrs_are_compared_at_once() -> None:
    (way,) = ways(AUTHORIZE, AUTH_VALUE, approved=(signed(pcr(0, digest="aa"), nv(0x01500100)),))
    assert codes(way) == [POLICY_PCR, POLICY_NV, POLICY_AUTHORIZE, POLICY_AUTH_VALUE]
    assert way[0].parameters.hex() == "0020" + "aa" * 32 + "00000001000b03010000"
    assert way[2].parameters.hex() == "0020" + "ef" * 32 + "0000" + "0022" + NAME
    assert isinstance(way[2].subject, Approval)


def test_a_policy_that_was_signed_twice_is_two_ways() -> None:
    assert len(ways(AUTHORIZE, approved=(signed(pcr(0)), signed(pcr(0), signature="01")))) == 2
    assert len(ways(AUTHORIZE, approved=(signed(pcr(0)), signed(pcr(0))))) == 1


def test_without_a_signed_policy_there_is_no_way() -> None:
    assert ways(AUTHORIZE) == []


def test_not_more_ways_are_tried_than_the_limit() -> None:
    many = [signed(either([pcr(number)], [pcr(number, 23)]), signature=f"{number:02x}") for number in range(16)]
    branches = [[either([AUTHORIZE], [pcr(number)])] for number in range(8)]
    assert len(ways(either(*branches), approved=tuple(many))) == PATH_LIMIT


def test_steps_that_send_the_same_are_equal() -> None:
    (one,) = ways(pcr(0))[0]
    (same,) = ways(pcr(0, digest="aa"))[0]
    (other,) = ways(pcr(1))[0]
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "a step"
    assert isinstance(one, Step)
