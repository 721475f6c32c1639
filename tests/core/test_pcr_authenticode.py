"""The digest by which firmware measures EFI programs."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.pe_programs import CHECKSUM_AT, HEADERS, OPTIONAL_AT, PE_AT, certificates_at, pe_program
from tpm_mtls.errors import UsageError
from tpm_mtls.pcr.authenticode import program_digests

SIGNED = pe_program(b"code" * 64, b"data" * 32, trailing=b"more" * 2, signature=b"signature" * 8)


def digest(data: bytes, bank: str = "sha256") -> str:
    return program_digests(data, [bank], "program")[bank].hex()


@pytest.mark.parametrize("magic", [0x10B, 0x20B])
@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_all_but_checksum_and_signature_is_measured(magic: int, bank: str) -> None:
    data = pe_program(b"1" * 512, b"2" * 100, magic=magic, trailing=b"3" * 7, signature=b"4" * 64)
    directory = certificates_at(magic)
    parts = data[:CHECKSUM_AT], data[CHECKSUM_AT + 4 : directory], data[directory + 8 : -64]
    assert digest(data, bank) == hashlib.new(bank, b"".join(parts)).hexdigest()


def test_signing_changes_nothing() -> None:
    unsigned = pe_program(b"code" * 64, b"data" * 32, trailing=b"more" * 2)
    assert digest(unsigned) == digest(SIGNED)
    assert digest(unsigned + b"x") != digest(SIGNED)


def test_sections_are_measured_in_their_order_in_the_file() -> None:
    data = bytearray(pe_program(b"1" * 64, b"2" * 64, b""))
    table = OPTIONAL_AT + 112 + 16 * 8
    first, second = data[table : table + 40], data[table + 40 : table + 80]
    data[table : table + 80] = second + first
    directory = certificates_at()
    parts = data[:CHECKSUM_AT], data[CHECKSUM_AT + 4 : directory], data[directory + 8 :]
    assert digest(bytes(data)) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_program_without_room_for_signatures_is_measured_but_for_its_checksum() -> None:
    data = pe_program(b"code", directories=4)
    assert digest(data) == hashlib.sha256(data[:CHECKSUM_AT] + data[CHECKSUM_AT + 4 :]).hexdigest()


@given(st.integers(0, len(SIGNED) - 1))
def test_each_byte_counts_or_is_one_of_those_that_do_not(at: int) -> None:
    changed = bytearray(SIGNED)
    changed[at] ^= 1
    directory = certificates_at()
    free = [
        *range(CHECKSUM_AT, CHECKSUM_AT + 4),
        *range(directory, directory + 4),
        *range(len(SIGNED) - 72, len(SIGNED)),
    ]
    if at in range(directory + 4, directory + 8):
        return  # how long the signature is
    try:
        same = digest(bytes(changed)) == digest(SIGNED)
    except UsageError:
        same = False
    assert same == (at in free)


def broken(at: int, form: str, value: int) -> bytes:
    data = bytearray(SIGNED)
    struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ",
        SIGNED[: HEADERS - 1],
        b"ZM" + SIGNED[2:],
        broken(0x3C, "<I", 0xFFFFFFFF),
        broken(PE_AT, "<I", 0),
        broken(OPTIONAL_AT, "<H", 0x107),
        broken(PE_AT + 6, "<H", 97),
        broken(OPTIONAL_AT + 60, "<I", 16),
        broken(OPTIONAL_AT + 60, "<I", 0x10000),
        broken(certificates_at() + 4, "<I", 0x10000),
        broken(OPTIONAL_AT + 112 + 16 * 8 + 16, "<I", 0x10000),
        broken(OPTIONAL_AT + 112 + 16 * 8 + 20, "<I", len(SIGNED)),
    ],
)
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="vmlinuz is no EFI program"):
        program_digests(data, ["sha256"], "vmlinuz")


@given(st.binary(max_size=300), st.integers(0, HEADERS))
def test_whatever_the_file_only_its_own_error_is_raised(noise: bytes, at: int) -> None:
    for data in (noise, SIGNED[:at] + noise + SIGNED[at + len(noise) :]):
        try:
            assert len(program_digests(data, ["sha256"], "program")["sha256"]) == 32
        except UsageError:
            continue
