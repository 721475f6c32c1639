"""The table: what it says comes back from the disk, and what contradicts itself is refused."""

from __future__ import annotations

import msgspec
import pytest

from support.policies import Operator, pcr_policy
from tpm_mtls.errors import IdentityError, PolicyError
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls_agent.storage.slots import WRITES_LIMIT, Shape
from tpm_mtls_agent.storage.table import LIMIT, Entry, Statistics, Table, check_table, encode_table, statistics_of

NAME, OTHER = b"\xab" * 32, b"\xcd" * 32
POLICY = (pcr_policy(),)
DIGEST = policy_digest(POLICY).hex()


def in_nv(name: bytes = NAME, slot: int = 1, policy: str = "", generation: int = 1) -> Entry:
    return Entry(name=name.hex(), slot=slot, form="nv", generation=generation, size=64, policy=policy, places=(0,))


def in_file(name: bytes = OTHER, slot: int = 2, policy: str = "") -> Entry:
    return Entry(name=name.hex(), slot=slot, form="file", generation=2, policy=policy)


def reread(table: Table) -> Table:
    return check_table(msgspec.json.decode(encode_table(table), type=Table))


def test_all_of_it_comes_back(tmp_path: pytest.TempPathFactory) -> None:
    signed = (Operator(tmp_path).authorize(b"agent"),)  # type: ignore[arg-type] - a folder
    table = Table().put(in_nv(policy=DIGEST), POLICY).advance().count(1).expect(Shape(3, 128))
    table = table.put(in_file(policy=policy_digest(signed).hex()), signed)

    assert reread(table) == table


def test_a_policy_that_no_secret_has_is_left_out() -> None:
    assert reread(Table().put(in_nv(policy=DIGEST), POLICY).put(in_nv())).policies == {}


def test_a_full_table_is_not_too_large() -> None:
    table = Table()
    for slot in range(256):
        policy = (pcr_policy({pcr: bytes([slot] * 32).hex() for pcr in range(24)}),)
        entry = in_nv(bytes([slot] * 32), slot, policy_digest(policy).hex(), 2**63 - 1)
        table = table.put(entry, policy).count(slot).expect(Shape(slot, 768, DIGEST))

    assert len(encode_table(table)) < LIMIT


def test_a_secret_is_found_by_its_hash() -> None:
    table = Table().put(in_nv()).put(in_file())

    assert table.find(NAME) == in_nv()
    assert table.find(OTHER) == in_file()
    assert table.find(bytes(32)) is None
    assert table.drop(in_nv()).find(NAME) is None


def test_an_index_that_a_secret_has_is_no_orphan() -> None:
    table = Table().expect(Shape(1, 64)).expect(Shape(2, 64))

    assert table.put(in_nv()).orphans == (Shape(2, 64),)
    assert table.put(in_file()).orphans == table.orphans, "the secret in a file does not have the index of its slot"
    assert table.settle(1).settle(2).orphans == ()


def test_a_slot_has_one_orphan_at_most() -> None:
    table = Table().expect(Shape(1, 64)).expect(Shape(1, 128))

    assert (table.orphan(1), table.orphan(2)) == (Shape(1, 128), None)


def test_taken_are_slots_of_secrets_and_of_orphans() -> None:
    assert Table().put(in_nv()).put(in_file()).expect(Shape(3, 64)).taken() == {1, 2, 3}


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(Table(entries=(in_nv(), in_nv(slot=2))), id="a name twice"),
        pytest.param(Table(entries=(in_nv(), in_nv(OTHER))), id="a slot twice"),
        pytest.param(Table(orphans=(Shape(1, 64), Shape(1, 64))), id="an orphan twice"),
        pytest.param(Table(orphans=(Shape(1, 65),)), id="a size that is none"),
        pytest.param(Table(entries=(msgspec.structs.replace(in_nv(), size=0),)), id="no size"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(table: Table) -> None:
    with pytest.raises(IdentityError, match="contradicts itself"):
        reread(table)


def test_another_policy_than_the_digest_says_is_refused() -> None:
    table = Table(entries=(in_nv(policy=DIGEST),), policies={DIGEST: (pcr_policy({7: "11" * 32}),)})
    with pytest.raises(IdentityError, match="not the one that it is said to be"):
        reread(table)


def test_a_missing_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match="asserts nothing"):
        reread(Table(entries=(in_nv(policy=DIGEST),)))


@pytest.mark.parametrize(
    "change",
    [
        {"slot": 256},
        {"slot": -1},
        {"name": "AB" * 32},
        {"name": "../" * 8},
        {"form": "disk"},
        {"generation": -1},
        {"policy": "xy"},
        {"places": [-1]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_entries_are_read_strictly(change: dict[str, object]) -> None:
    entry = msgspec.to_builtins(in_nv()) | change
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"entries": [entry]}), type=Table)


def test_writes_are_counted_by_nv_index_and_worn_ones_named() -> None:
    table = Table(entries=(in_nv(), in_file()), orphans=(Shape(3, 64),), writes={1: WRITES_LIMIT, 9: 2}).count(9)

    assert statistics_of(table, lost=frozenset({1}), foreign=frozenset({5})) == Statistics(
        secrets=2,
        in_nv=1,
        in_files=1,
        free_slots=252,
        nv_writes={0x01520001: 90_000, 0x01520009: 3},
        worn=(0x01520001,),
        orphans=(0x01520003,),
        lost=(0x01520001,),
        foreign=(0x01520005,),
    )
