"""What is in an NV index: only what this agent wrote there, for this name, whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import IdentityError
from tpm_mtls_agent.storage.names import DeviceKeys
from tpm_mtls_agent.storage.record import INLINE, KEY, VALUE_LIMIT, Record, decode_record, encode_record, record_size
from tpm_mtls_agent.storage.slots import size_class

KEYS = DeviceKeys.unpack(bytes(range(64)))
INDEX = 0x01520042
NAME = KEYS.name(b"stripe-api-key")
RECORD = Record(INLINE, 7, b"sk_live_abc123xyz")


def encode(record: Record = RECORD) -> bytes:
    return encode_record(KEYS, INDEX, NAME, record, size_class(record_size(len(record.content))) or 0)


@given(st.binary(max_size=VALUE_LIMIT), st.integers(0, 2**63 - 1), st.sampled_from([INLINE, KEY]))
def test_a_record_comes_back(content: bytes, generation: int, kind: int) -> None:
    record = Record(kind, generation, content)

    assert decode_record(KEYS, INDEX, NAME, encode(record)) == record


def test_the_name_is_not_in_it() -> None:
    assert b"stripe" not in encode()


def test_the_content_is_not_in_it_and_the_same_one_is_never_the_same_there() -> None:
    of_generations = {encode(Record(INLINE, generation, RECORD.content))[28:45] for generation in range(20)}

    assert len(of_generations) == 20
    assert RECORD.content not in of_generations
    assert DeviceKeys.generate().encryption_key != KEYS.encryption_key


def test_an_older_longer_value_leaves_nothing_behind() -> None:
    assert len(encode()) == 64
    assert encode().endswith(bytes(64 - 28 - 17))


@given(st.integers(0, 28 + len(RECORD.content) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, change: int) -> None:
    data = bytearray(encode())
    data[at] ^= change
    if 12 <= at < 20:  # the name's beginning, for people who look at a dump
        assert decode_record(KEYS, INDEX, NAME, bytes(data)) == RECORD
    else:
        with pytest.raises(IdentityError, match="NV 0x01520042 cannot be used"):
            decode_record(KEYS, INDEX, NAME, bytes(data))


@pytest.mark.parametrize(
    ("keys", "index", "name"),
    [
        pytest.param(DeviceKeys.generate(), INDEX, NAME, id="another device"),
        pytest.param(KEYS, INDEX + 1, NAME, id="another NV index"),
        pytest.param(KEYS, INDEX, KEYS.name(b"other"), id="another secret"),
    ],
)
def test_a_record_from_elsewhere_is_refused(keys: DeviceKeys, index: int, name: bytes) -> None:
    with pytest.raises(IdentityError, match="did not write it for this secret"):
        decode_record(keys, index, name, encode())


@pytest.mark.parametrize("size", [0, 27, 40])
def test_a_record_that_was_cut_off_is_refused(size: int) -> None:
    with pytest.raises(IdentityError, match=r"too short|another format"):
        decode_record(KEYS, INDEX, NAME, encode()[:size])


def test_a_write_that_was_torn_is_recognised() -> None:
    newer = encode(Record(INLINE, 8, b"sk_live_new_key_456"))
    for at in range(4, 28 + 17):
        with pytest.raises(IdentityError, match="did not write it"):
            decode_record(KEYS, INDEX, NAME, newer[:at] + encode()[at:])


def test_an_unwritten_index_is_no_record() -> None:
    with pytest.raises(IdentityError, match="another format"):
        decode_record(KEYS, INDEX, NAME, b"\xff" * 64)


def test_values_do_not_show_in_a_log() -> None:
    assert "sk_live" not in repr(RECORD)
