"""What stands for a name: nothing that tells it, and the same on this device only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls_agent.storage.names import DeviceKeys


def test_the_same_name_has_the_same_hash_on_one_device_only() -> None:
    keys, others = DeviceKeys.generate(), DeviceKeys.generate()

    assert keys.name(b"stripe-api-key") == DeviceKeys.unpack(keys.pack()).name(b"stripe-api-key")
    assert keys.name(b"stripe-api-key") != others.name(b"stripe-api-key")
    assert keys.authorization != others.authorization


@given(st.binary(min_size=1, max_size=255), st.binary(min_size=1, max_size=255))
def test_different_names_have_different_hashes(one: bytes, other: bytes) -> None:
    keys = DeviceKeys.unpack(bytes(range(64)))

    assert (keys.name(one) == keys.name(other)) == (one == other)
    assert keys.name(one) != keys.tag(one), "a hash of a name says nothing about a record"


def test_a_label_is_the_beginning_of_the_hash() -> None:
    keys = DeviceKeys.generate()

    assert keys.label(b"a") == keys.name(b"a").hex()[:16]


def test_keys_do_not_show_in_a_log() -> None:
    keys = DeviceKeys.unpack(b"R" * 32 + b"A" * 32)

    assert "RR" not in repr(keys)
    assert "AA" not in repr(keys)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_keys_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="another size"):
        DeviceKeys.unpack(bytes(size))
