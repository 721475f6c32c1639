"""Files of large values: one secret, one slot, one generation, one key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import IdentityError
from tpm_mtls.structures import Attribute, parse_public_area
from tpm_mtls.structures.sealed import SealedObject
from tpm_mtls.tpm.templates import sealed_template
from tpm_mtls_agent.storage.envelope import (
    FILE_LIMIT,
    VALUE_LIMIT,
    Place,
    file_name,
    make_envelope,
    parse_envelope,
    parse_file_name,
)

KEY = bytes(range(32))
PLACE = Place(0x01520042, 7, b"\xab" * 32)
SEALED = SealedObject(parse_public_area(sealed_template(with_authorization=False)), b"p" * 160)
VALUE = b"-----BEGIN PRIVATE KEY-----" * 100


@given(value=st.binary(max_size=2000), sealed=st.booleans())
def test_a_value_comes_back(value: bytes, *, sealed: bool) -> None:
    envelope = parse_envelope(make_envelope(PLACE, KEY, value, SEALED if sealed else None), PLACE)

    assert envelope.open(KEY) == value
    assert envelope.sealed == (SEALED if sealed else None)


def test_the_largest_value_fits_into_a_file() -> None:
    assert len(make_envelope(PLACE, KEY, bytes(VALUE_LIMIT), SEALED)) < FILE_LIMIT


def test_value_and_key_are_not_in_it() -> None:
    data = make_envelope(PLACE, KEY, VALUE, SEALED)

    assert b"PRIVATE KEY" not in data
    assert KEY not in data


@pytest.mark.parametrize("sealed", [None, SEALED], ids=["key in NV", "sealed key"])
def test_any_changed_byte_is_noticed(sealed: SealedObject | None) -> None:
    data = make_envelope(PLACE, KEY, b"value", sealed)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        with pytest.raises(IdentityError, match=r"the file abab.*\.7\.sealed"):
            parse_envelope(changed, PLACE).open(KEY)


@pytest.mark.parametrize("sealed", [None, SEALED], ids=["key in NV", "sealed key"])
def test_a_file_that_was_cut_off_is_refused(sealed: SealedObject | None) -> None:
    data = make_envelope(PLACE, KEY, b"value", sealed)
    for size in range(len(data)):
        with pytest.raises(IdentityError, match="damaged"):
            parse_envelope(data[:size], PLACE).open(KEY)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(Place(PLACE.index + 1, 7, PLACE.name), id="another slot"),
        pytest.param(Place(PLACE.index, 8, PLACE.name), id="a newer generation"),
        pytest.param(Place(PLACE.index, 6, PLACE.name), id="an older generation"),
        pytest.param(Place(PLACE.index, 7, bytes(32)), id="another secret"),
    ],
)
def test_a_file_that_was_put_in_anothers_place_is_refused(place: Place) -> None:
    with pytest.raises(IdentityError, match="another secret's, or of another time"):
        parse_envelope(make_envelope(PLACE, KEY, VALUE), place)


def test_a_file_that_says_it_is_in_its_place_is_refused_all_the_same() -> None:
    """Where it says which one it is can be changed by anybody; but it is authenticated."""
    data = make_envelope(PLACE, KEY, VALUE)
    forged = make_envelope(newer := Place(PLACE.index, 8, PLACE.name), KEY, VALUE)[:54] + data[54:]
    with pytest.raises(IdentityError, match="damaged, or older"):
        parse_envelope(forged, newer).open(KEY)


def test_an_older_file_is_refused_once_the_tpm_has_another_key() -> None:
    with pytest.raises(IdentityError, match="older than what the TPM knows"):
        parse_envelope(make_envelope(PLACE, KEY, VALUE), PLACE).open(bytes(32))


def test_a_sealed_key_that_is_none_is_refused() -> None:
    template = sealed_template(with_authorization=False)
    attributes = int.from_bytes(template[4:8], "big") | Attribute.SIGN
    key = SealedObject(parse_public_area(template[:4] + attributes.to_bytes(4, "big") + template[8:]), b"p")
    with pytest.raises(IdentityError, match="damaged"):
        parse_envelope(make_envelope(PLACE, KEY, VALUE, key), PLACE)


def test_a_file_without_a_sealed_key_has_none() -> None:
    with pytest.raises(IdentityError, match="no sealed key"):
        _ = parse_envelope(make_envelope(PLACE, KEY, VALUE), PLACE).sealed_key


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1))
def test_file_names_tell_whose_they_are(name: bytes, generation: int) -> None:
    assert parse_file_name(file_name(name.hex(), generation)) == (name.hex(), generation)


@pytest.mark.parametrize(
    "file", ["table.json", f"{'ab' * 32}.sealed", f"{'AB' * 32}.1.sealed", f"{'ab' * 32}.1.sealed~"]
)
def test_other_files_are_none(file: str) -> None:
    assert parse_file_name(file) is None
