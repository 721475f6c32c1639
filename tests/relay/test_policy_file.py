"""Policy files come from outside: what is not exactly one is refused, whatever it is."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.policy import document
from tpm_mtls.policy.digest import policy_digest as core_digest
from tpm_mtls_relay.errors import POLICY_DAMAGED
from tpm_mtls_relay.policies.digest import policy_digest
from tpm_mtls_relay.policies.fields import SIZE_LIMIT, PolicyFileError
from tpm_mtls_relay.policies.file import Authorize, AuthValue, Nv, Or, Pcr, parse_key_policy, parse_signed_policy

NAME = "000b" + "ab" * 32
PCR = {
    "type": "pcr",
    "bank": "sha1",
    "pcrs": [0, 23],
    "digest": "cd" * 32,
    "values": {"0": "00" * 20, "23": "ff" * 20},
    "recorded": "2026-11-22T03:00:00Z",
}
NV = {"type": "nv", "index": "0x01500100", "name": NAME, "operation": "unsigned-le", "operand": "0000000000000005"}
AUTHORIZE = {"type": "authorize", "signer": {"public": "0023", "name": NAME}, "policy_ref": "beef"}
AUTH_VALUE = {"type": "auth-value"}
OR = {"type": "or", "branches": [[PCR], [NV, PCR]]}
KEY_POLICY = {"format": 1, "name": NAME, "policy": [OR, AUTH_VALUE]}
SIGNED_POLICY = {
    "format": 1,
    "signer": NAME,
    "policy_ref": "",
    "version": 5,
    "description": "an update",
    "policy": [PCR, NV],
    "digest": "ef" * 32,
    "signature": "0018",
}

Json = dict[str, Any]

_VALUES = [bytes(32), bytes([7]) * 32]
CORE_PCR = document.PolicyPcr(
    bank="sha256",
    pcrs=(0, 7),
    digest=document.pcr_digest(_VALUES).hex(),
    values={0: _VALUES[0].hex(), 7: _VALUES[1].hex()},
    recorded="2026-11-22T03:00:00Z",
)
CORE_NV = document.PolicyNv(index="0x01500100", name=NAME, operand="0000000000000005")
CORE_POLICY = (document.PolicyOr(branches=((CORE_PCR,), (CORE_NV, CORE_PCR))), document.PolicyAuthValue())


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def key_policy(*policy: object) -> bytes:
    return encoded(KEY_POLICY | {"policy": list(policy)})


def refused(data: bytes, match: str) -> None:
    with pytest.raises(PolicyFileError, match=match) as caught:
        parse_key_policy(data)
    assert caught.value.code == POLICY_DAMAGED


def test_every_assertion_is_read() -> None:
    name, policy = parse_key_policy(encoded(KEY_POLICY))
    assert name.hex() == NAME
    first, second = policy
    assert isinstance(first, Or)
    assert isinstance(second, AuthValue)
    (pcr,), (nv, _) = first.branches
    assert isinstance(pcr, Pcr)
    assert (pcr.bank, pcr.pcrs, pcr.digest.hex()) == ("sha1", (0, 23), "cd" * 32)
    assert isinstance(nv, Nv)
    assert (nv.index, nv.name.hex(), nv.operand.hex()) == (0x01500100, NAME, "0000000000000005")
    _, (authorize, *_) = parse_key_policy(key_policy(AUTHORIZE, PCR))
    assert isinstance(authorize, Authorize)
    assert (authorize.signer.hex(), authorize.signer_name.hex(), authorize.policy_ref.hex()) == ("0023", NAME, "beef")


def test_a_signed_policy_is_read() -> None:
    signed = parse_signed_policy(encoded(SIGNED_POLICY))
    assert (signed.signer_name.hex(), signed.policy_ref, signed.version) == (NAME, b"", 5)
    assert (signed.digest.hex(), signed.signature.hex()) == ("ef" * 32, "0018")
    assert [type(assertion) for assertion in signed.policy] == [Pcr, Nv]


def test_what_is_for_people_may_be_absent() -> None:
    bare = {name: value for name, value in PCR.items() if name not in {"values", "recorded"}}
    parse_key_policy(key_policy(bare))
    fields = {name: value for name, value in SIGNED_POLICY.items() if name != "description"}
    parse_signed_policy(encoded(fields))


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512", "sm3_256", "sha3_256", "sha3_384", "sha3_512"])
def test_every_bank_of_the_registry_is_known(bank: str) -> None:
    fields = PCR | {"bank": bank}
    del fields["values"]
    parse_key_policy(key_policy(fields))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 60000, "no JSON"),
        (b"1" * 5000, "no JSON"),
        (b" " * (SIZE_LIMIT + 1), "more than 65536 bytes"),
        (b"null", "an object is missing"),
        (b"[]", "an object is missing"),
        (b'{"format": 1, "format": 1}', "a field occurs twice"),
        (encoded(KEY_POLICY)[:-1] + b', "name": "' + NAME.encode() + b'"}', "a field occurs twice"),
        (b'{"format": NaN}', "the number NaN"),
        (b'{"format": 1.0}', r"the number 1\.0"),
        (encoded(KEY_POLICY | {"format": 2}), "a format that this version does not know"),
        (encoded(KEY_POLICY | {"format": True}), "a number is missing"),
        (encoded(KEY_POLICY | {"format": "1"}), "a number is missing"),
        (encoded(KEY_POLICY | {"more": 1}), r"\['more'\] unknown"),
        (encoded({"format": 1, "name": NAME}), r"\['policy'\] are missing"),
        (encoded(KEY_POLICY | {"name": NAME.upper()}), "hexadecimal"),
        (encoded(KEY_POLICY | {"name": NAME[:-2]}), "no Name"),
        (encoded(KEY_POLICY | {"name": "0004" + "ab" * 20}), "no Name"),
        (encoded(KEY_POLICY | {"name": ""}), "no Name"),
        (encoded(KEY_POLICY | {"name": "000b" + " ab" * 32}), "hexadecimal"),
        (encoded(KEY_POLICY | {"name": 11}), "hexadecimal"),
        (encoded(KEY_POLICY | {"policy": {}}), "a list is missing"),
        (key_policy(), "a list is missing or empty"),
        (key_policy(*[AUTH_VALUE] * 17), "too many assertions"),
        (key_policy("pcr"), "unknown type"),
        (key_policy({"type": "signed"}), "unknown type"),
        (key_policy({"type": ["pcr"]}), "unknown type"),
        (key_policy(AUTH_VALUE | {"value": "secret"}), "unknown"),
        (key_policy(PCR, OR), "come first"),
        (key_policy(PCR, AUTHORIZE), "come first"),
        (key_policy(OR | {"branches": [[PCR]]}), "1 branches"),
        (key_policy(OR | {"branches": [[PCR]] * 9}), "9 branches"),
        (key_policy(OR | {"branches": [[PCR], []]}), "empty"),
        (key_policy(OR | {"branches": [[PCR], [PCR, OR]]}), "come first"),
        (key_policy(PCR | {"bank": "md5"}), "bank md5 is unknown"),
        (key_policy(PCR | {"bank": 11}), "a text is missing"),
        (key_policy(PCR | {"pcrs": []}), "a list is missing or empty"),
        (key_policy(PCR | {"pcrs": [0, 24]}), "out of its range"),
        (key_policy(PCR | {"pcrs": [-1, 0]}), "out of its range"),
        (key_policy(PCR | {"pcrs": [7, 0]}), "do not ascend"),
        (key_policy(PCR | {"pcrs": [0, 0]}), "do not ascend"),
        (key_policy(PCR | {"pcrs": ["0"]}), "a number is missing"),
        (key_policy(PCR | {"digest": "c"}), "hexadecimal"),
        (key_policy(PCR | {"digest": "cd" * 65}), "hexadecimal"),
        (key_policy(PCR | {"values": {"0": "00" * 20}}), r"\['23'\] are missing"),
        (key_policy(PCR | {"values": {"0": "00" * 20, "23": "00"}}), "its bank's size"),
        (key_policy(PCR | {"recorded": "x" * 1025}), "too long"),
        (key_policy(PCR | {"recorded": None}), "a text is missing"),
        (key_policy(NV | {"index": "01500100"}), "no NV index"),
        (key_policy(NV | {"index": "0x1500100"}), "hexadecimal"),
        (key_policy(NV | {"index": "0x81000100"}), "no NV index"),
        (key_policy(NV | {"index": 22020352}), "a text is missing"),
        (key_policy(NV | {"operation": "unsigned-ge"}), "a comparison"),
        (key_policy(NV | {"operand": "05"}), "a comparison"),
        (key_policy(NV | {"name": ""}), "no Name"),
        (key_policy(AUTHORIZE | {"signer": NAME}), "an object is missing"),
        (key_policy(AUTHORIZE | {"policy_ref": "00" * 65}), "too many"),
        (key_policy(AUTHORIZE | {"signer": {"public": "00" * 1025, "name": NAME}}), "too many"),
    ],
)
def test_anything_else_is_refused(data: bytes, match: str) -> None:
    refused(data, match)


def test_an_or_is_four_levels_deep_at_most() -> None:
    nested: Json = OR
    for _ in range(3):
        nested = {"type": "or", "branches": [[nested], [PCR]]}
    parse_key_policy(key_policy(nested))
    refused(key_policy({"type": "or", "branches": [[nested], [PCR]]}), "too deep")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"policy": [AUTHORIZE]}, "asks for another one"),
        ({"policy": [{"type": "or", "branches": [[PCR], [AUTHORIZE]]}]}, "asks for another one"),
        ({"version": -1}, "out of its range"),
        ({"version": 1 << 64}, "out of its range"),
        ({"version": "5"}, "a number is missing"),
        ({"description": 5}, "a text is missing"),
        ({"signature": "0"}, "hexadecimal"),
        ({"signature": "00" * 1025}, "too many"),
        ({"digest": None}, "hexadecimal"),
        ({"signer": NAME[:-2]}, "no Name"),
        ({"name": NAME}, "unknown"),
    ],
)
def test_a_signed_policy_with_one_thing_wrong_is_refused(change: Json, match: str) -> None:
    with pytest.raises(PolicyFileError, match=match):
        parse_signed_policy(encoded(SIGNED_POLICY | change))


# --- whatever it is, it is either read or refused by its name


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from([NAME, "pcr", "or"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def read(data: bytes) -> None:
    for parse in (parse_key_policy, parse_signed_policy):
        try:
            parse(data)
        except PolicyFileError as error:
            assert error.code == POLICY_DAMAGED  # noqa: PT017 - both outcomes are right


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    read(data)


@given(json_values)
def test_any_json(document: object) -> None:
    read(encoded(document))


@given(st.data(), json_values)
def test_any_value_in_any_place(data: st.DataObject, value: object) -> None:
    document = copy.deepcopy(
        data.draw(st.sampled_from([KEY_POLICY, SIGNED_POLICY, KEY_POLICY | {"policy": [AUTHORIZE]}]))
    )
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    read(encoded(document))


@given(st.data())
def test_any_changed_byte(data: st.DataObject) -> None:
    document = bytearray(encoded(data.draw(st.sampled_from([KEY_POLICY, SIGNED_POLICY]))))
    document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(document))


# --- the core writes what the relay reads


def test_a_policy_that_the_core_wrote_is_read_and_leads_to_the_same_digest() -> None:
    written = document.PolicyDocument(name=NAME, policy=CORE_POLICY)
    name, policy = parse_key_policy(document.encode(written))
    assert name.hex() == NAME
    assert policy_digest(policy, "sha256") == core_digest(CORE_POLICY)
    signed_for = (CORE_POLICY[0],)
    signed = document.SignedPolicy(
        signer=NAME,
        policy_ref="beef",
        version=7,
        description="an update",
        policy=signed_for,
        digest=core_digest(signed_for).hex(),
        signature="0018",
    )
    read_again = parse_signed_policy(document.encode(signed))
    assert policy_digest(read_again.policy, "sha256") == read_again.digest
    authorize = document.PolicyAuthorize(signer=document.Signer(public="0023", name=NAME), policy_ref="beef")
    _, policy = parse_key_policy(document.encode(document.PolicyDocument(name=NAME, policy=(authorize,))))
    assert policy_digest(policy, "sha256") == core_digest((authorize,))
