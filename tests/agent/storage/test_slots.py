"""Which slot a name gets, and how large its NV index is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.structures.nv_public import NvAttribute, NvPublic
from tpm_mtls_agent.storage.record import KEY_RECORD, VALUE_LIMIT, record_size
from tpm_mtls_agent.storage.slots import (
    SIZES,
    SLOTS,
    Shape,
    choose_slot,
    home_slot,
    index_of,
    shape_of,
    size_class,
    slot_of,
)

hashes = st.binary(min_size=32, max_size=32)
slots = st.sets(st.integers(0, SLOTS - 1))


@given(hashes, slots, slots)
def test_a_slot_is_free_and_not_worn_if_there_is_such_a_one(name: bytes, taken: set[int], worn: set[int]) -> None:
    slot = choose_slot(name, taken, worn)

    free = set(range(SLOTS)) - taken
    assert slot is None if not free else slot in (free - worn or free)


@given(hashes, slots)
def test_it_is_the_first_one_from_the_names_own(name: bytes, taken: set[int]) -> None:
    slot = choose_slot(name, taken)

    if slot is not None:
        home = home_slot(name)
        between = {(home + step) % SLOTS for step in range((slot - home) % SLOTS)}
        assert between <= taken


def test_without_a_free_slot_there_is_none() -> None:
    assert choose_slot(bytes(32), range(SLOTS)) is None
    assert choose_slot(bytes(32), range(1, SLOTS)) == 0


def test_the_hash_modulo_256_is_the_first_to_be_tried() -> None:
    assert choose_slot(bytes(31) + b"\x42", ()) == 0x42
    assert choose_slot(bytes(31) + b"\xff", {255, 0}) == 1


def test_slots_are_the_documents_nv_indices() -> None:
    assert [index_of(0), index_of(255)] == [0x01520000, 0x015200FF]
    assert [slot_of(index) for index in (0x0151FFFF, 0x01520000, 0x015200FF, 0x01520100)] == [None, 0, 255, None]


@given(st.integers(0, 65536))
def test_an_index_takes_the_record_of_every_value(size: int) -> None:
    found = size_class(record_size(size))

    assert found in SIZES
    assert found >= KEY_RECORD, "so that a value that grew is overwritten in place, too: with the key of its file"


def test_no_index_is_larger_than_what_is_written_at_a_time() -> None:
    assert size_class(record_size(VALUE_LIMIT)) == 768
    assert size_class(record_size(VALUE_LIMIT + 1)) == 64
    assert size_class(769) is None


def test_without_a_policy_the_authorization_value_reads_and_writes() -> None:
    public = Shape(0x42, 128).public()

    assert public.attributes == NvAttribute.AUTHREAD | NvAttribute.AUTHWRITE | NvAttribute.NO_DA
    assert (public.index, public.size, public.policy, public.written) == (0x01520042, 128, b"", True)


def test_with_a_policy_nothing_else_reads() -> None:
    public = Shape(0, 64, "ab" * 32).public(written=False)

    assert public.attributes == NvAttribute.POLICYREAD | NvAttribute.OWNERWRITE | NvAttribute.NO_DA
    assert public.policy == b"\xab" * 32


@given(
    slot=st.integers(0, SLOTS - 1),
    size=st.sampled_from(SIZES),
    policy=st.sampled_from(["", "ab" * 32]),
    written=st.booleans(),
)
def test_our_own_shape_is_recognised(slot: int, size: int, policy: str, *, written: bool) -> None:
    assert shape_of(Shape(slot, size, policy).public(written=written)) == Shape(slot, size, policy)


@pytest.mark.parametrize(
    "public",
    [
        NvPublic(0x01520100, 64, Shape(0, 64).public().attributes),
        NvPublic(0x01520000, 65, Shape(0, 64).public().attributes),
        NvPublic(0x01520000, 64, NvAttribute.AUTHREAD | NvAttribute.AUTHWRITE),
        NvPublic(0x01520000, 64, Shape(0, 64).public().attributes, b"\xab" * 32),
        NvPublic(0x01520000, 64, Shape(0, 64, "ab" * 32).public().attributes),
    ],
    ids=["index", "size", "attributes", "policy", "no policy"],
)
def test_other_shapes_are_not(public: NvPublic) -> None:
    assert shape_of(public) is None
