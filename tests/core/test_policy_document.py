"""Policy files: strictly read, written as the relay reads them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.policies import ZEROS, Operator, pcr_policy
from tpm_mtls.errors import PemError, PolicyError, StorageError
from tpm_mtls.policy.counters import DEFAULT_COUNTER, not_beyond
from tpm_mtls.policy.document import (
    LIMIT,
    PolicyAuthValue,
    PolicyDocument,
    PolicyOr,
    encode,
    parse_policy,
    parse_signed_policy,
    pcr_digest,
)
from tpm_mtls.policy.files import (
    find_policy,
    find_signed_policies,
    has_policies,
    policy_path,
    write_policy,
)
from tpm_mtls_relay.policies.file import parse_key_policy
from tpm_mtls_relay.policies.file import parse_signed_policy as relay_parse_signed_policy

if TYPE_CHECKING:
    from pathlib import Path

NAME = b"\x00\x0b" + bytes(range(32))
PCR = json.loads(encode(PolicyDocument(name=NAME.hex(), policy=(pcr_policy(),))))["policy"][0]
AUTH = {"type": "auth-value"}
NV = json.loads(encode(PolicyDocument(name=NAME.hex(), policy=(not_beyond(DEFAULT_COUNTER, 5),))))["policy"][0]


def policy_file(*assertions: object, **changes: object) -> bytes:
    return json.dumps({"format": 1, "name": NAME.hex(), "policy": assertions} | changes).encode()


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_what_is_written_is_read_again_and_by_the_relay(operator: Operator) -> None:
    branches = ((pcr_policy(),), (PolicyAuthValue(), not_beyond(DEFAULT_COUNTER, 7)))
    for policy in (
        (pcr_policy(), PolicyAuthValue()),
        (operator.authorize(b"web"), PolicyAuthValue()),
        (PolicyOr(branches=branches), PolicyAuthValue()),
    ):
        document = PolicyDocument(name=NAME.hex(), policy=policy)
        assert parse_policy(encode(document)) == document
        assert parse_key_policy(encode(document))[0] == NAME
    signed = operator.sign(pcr_policy(), not_beyond(DEFAULT_COUNTER, 5), version=5, description="image 5")
    assert parse_signed_policy(encode(signed)) == signed
    assert relay_parse_signed_policy(encode(signed)).version == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "input data was truncated", id="nothing"),
        pytest.param(b"[]", "expected `object`", id="no object"),
        pytest.param(b"\xff", "malformed", id="no JSON"),
        # Python 3.13 lets C code nest deeper than the limit of this file's size lets JSON
        pytest.param(b'{"policy":[' + b'{"type":"or","branches":[[' * 2000, "(recursion|was truncated)", id="deep"),
        pytest.param(b" " * (LIMIT + 1), "larger than 65536 bytes", id="large"),
        pytest.param(policy_file(AUTH, format=2), "has format 2, expected 1", id="format"),
        pytest.param(policy_file(AUTH, more=1), "unknown field `more`", id="unknown field"),
        pytest.param(policy_file(AUTH, name="000b"), "regex", id="short name"),
        pytest.param(policy_file(AUTH, name=NAME.hex() + "\n"), "regex", id="newline"),
        pytest.param(policy_file(AUTH, name=NAME.hex().upper()), "regex", id="upper case"),
        pytest.param(policy_file(), "it asserts nothing", id="empty"),
        pytest.param(policy_file({"type": "other"}), "invalid value 'other'", id="unknown type"),
        pytest.param(policy_file(AUTH | {"more": 1}), "unknown field `more`", id="unknown field of an assertion"),
        pytest.param(policy_file(PCR | {"bank": "md5"}), "the PCR bank 'md5' is unknown", id="bank"),
        pytest.param(policy_file(PCR | {"pcrs": []}), "not numbered rightly", id="no PCR"),
        pytest.param(policy_file(PCR | {"pcrs": [24]}), "not numbered rightly", id="no such PCR"),
        pytest.param(policy_file(PCR | {"pcrs": [7, 7]}), "not numbered rightly", id="twice"),
        pytest.param(policy_file(PCR | {"values": {}}), "not numbered rightly", id="no value"),
        pytest.param(policy_file(PCR | {"values": {"x": ZEROS}}), "expected `int`", id="no number"),
        pytest.param(policy_file(PCR | {"values": {"7": "00"}}), "contradict each other", id="short value"),
        pytest.param(policy_file(PCR | {"values": {"7": "11" * 32}}), "contradict each other", id="another value"),
        pytest.param(policy_file(PCR | {"recorded": "x" * 1025}), "length <= 1024", id="long text"),
        pytest.param(policy_file(NV | {"operation": "unsigned-ge"}), "regex", id="another comparison"),
        pytest.param(policy_file(NV | {"index": "0x81000000"}), "regex", id="no NV index"),
        pytest.param(policy_file(NV | {"operand": "05"}), "regex", id="short operand"),
        pytest.param(
            policy_file(AUTH, {"type": "or", "branches": [[AUTH], [AUTH]]}), "what comes before an or", id="late or"
        ),
        pytest.param(policy_file({"type": "or", "branches": [[AUTH]]}), "2 to 8 branches", id="one branch"),
        pytest.param(policy_file({"type": "or", "branches": [[AUTH]] * 9}), "2 to 8 branches", id="nine branches"),
        pytest.param(policy_file({"type": "or", "branches": [[AUTH], []]}), "it asserts nothing", id="empty branch"),
    ],
)
def test_nothing_else_is_a_policy(data: bytes, message: str) -> None:
    with pytest.raises(PolicyError, match=f"(?i)the file .*{message}"):
        parse_policy(data, "the file")


def test_branches_are_two_levels_deep_at_most() -> None:
    nested: dict[str, Any] = {"type": "or", "branches": [[AUTH], [PCR]]}
    nested = {"type": "or", "branches": [[AUTH], [nested]]}
    parse_policy(policy_file(nested))
    with pytest.raises(PolicyError, match="two levels deep"):
        parse_policy(policy_file({"type": "or", "branches": [[AUTH], [nested]]}))


def test_what_is_signed_for_is_about_pcrs_and_the_counter_of_its_version(operator: Operator) -> None:
    signed = json.loads(encode(operator.sign(pcr_policy(), not_beyond(DEFAULT_COUNTER, 5), version=5)))
    parse_signed_policy(json.dumps(signed).encode())
    authorize = {"type": "authorize", "signer": {"public": "00", "name": NAME.hex()}, "policy_ref": ""}
    for changes, message in (
        ({"policy": [AUTH]}, "about PCRs and the counter only"),
        ({"policy": [authorize]}, "about PCRs and the counter only"),
        ({"policy": [{"type": "or", "branches": [[PCR], [AUTH]]}]}, "about PCRs and the counter only"),
        ({"version": 6}, "it is version 6, but holds the counter against another one"),
        ({"version": -1}, "expected `int` >= 0"),
        ({"signature": "0"}, "regex"),
    ):
        with pytest.raises(PolicyError, match=message):
            parse_signed_policy(json.dumps(signed | changes).encode())


@given(st.binary(max_size=200) | st.from_regex(rb'\{"format":1,"name":"000b[0-9a-f]{64}","policy":\[.{0,80}\]\}'))
def test_no_bytes_do_anything_else_than_being_refused(data: bytes) -> None:
    for parse in (parse_policy, parse_signed_policy):
        with suppress(PolicyError):
            parse(data)


# --- where they lie


def test_a_policy_is_found_by_the_name_of_its_key(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert not has_policies(first)
    first.mkdir()
    second.mkdir()
    (first / f".{NAME.hex()}.policy.json").write_text("what a killed program left")
    (first / "x.signed-policy.json").write_text("not a key's")
    assert not has_policies(first)
    assert find_policy(NAME, [first, second]) is None
    document = PolicyDocument(name=NAME.hex(), policy=(pcr_policy(),))
    path = write_policy(second, document)
    assert path == policy_path(second, NAME) == second / f"{NAME.hex()}.policy.json"
    assert path.stat().st_mode & 0o777 == 0o644
    assert has_policies(second)
    assert find_policy(NAME, [tmp_path / "gone", first, second]) == document
    assert find_policy(NAME[::-1], [second]) is None


def test_a_policy_of_another_key_is_not_taken(tmp_path: Path) -> None:
    write_policy(tmp_path, PolicyDocument(name=NAME.hex(), policy=(pcr_policy(),)))
    other = NAME[:2] + bytes(32)
    policy_path(tmp_path, NAME).rename(policy_path(tmp_path, other))
    with pytest.raises(PolicyError, match=r"0000\.policy\.json is the policy of another key"):
        find_policy(other, [tmp_path])
    policy_path(tmp_path, NAME).write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(PemError, match="larger than 65536 bytes"):
        find_policy(NAME, [tmp_path])


def test_signed_policies_are_found_newest_first_and_damaged_ones_told(tmp_path: Path, operator: Operator) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for version in (3, 12, 5):
        (folder / f"{version}.signed-policy.json").write_bytes(encode(operator.sign(pcr_policy(), version=version)))
    (folder / "damaged.signed-policy.json").write_text("{")
    (folder / "large.signed-policy.json").write_bytes(b"x" * (LIMIT + 1))
    (folder / "folder.signed-policy.json").mkdir()
    found, damaged = find_signed_policies([folder, folder, tmp_path / "gone"])
    assert [each.policy.version for each in found] == [12, 5, 3]
    assert sorted(str(error).split("/")[-1].split(".")[0] for error in damaged) == ["damaged", "folder", "large"]


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot read .*not a directory"):
        has_policies(tmp_path / "file")


def test_looking_whether_there_is_a_policy_imports_nothing_large() -> None:
    import subprocess
    import sys

    large = "{'msgspec', 'cryptography', 'tpm2_pytss'}"
    program = f"import sys, tpm_mtls.policy.files; print(sorted({large} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


def test_the_digest_of_pcrs_is_over_their_values_in_order() -> None:
    assert pcr_policy({0: "aa" * 32, 7: "bb" * 32}).digest == pcr_digest([b"\xaa" * 32, b"\xbb" * 32]).hex()
