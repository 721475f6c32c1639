"""The digest by which firmware measures an EFI program: without its signatures, and what they change. Pure.

Microsoft, "Windows Authenticode Portable Executable Signature Format" 1.0 (2008), "Calculating the PE Image Hash"; TCG
PC Client Platform Firmware Profile 1.05 rev 23, 3.3.4.5 (PCR 4); EDK2, DxeTpm2MeasureBootLib. A kernel with an EFI
stub, a unified kernel image, shim and GRUB are such programs.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PE_OFFSET_AT: Final = 0x3C
_COFF_SIZE: Final = 4 + 20  # "PE\0\0" and the COFF header
_PE32, _PE32_PLUS = 0x10B, 0x20B
_CHECKSUM_AT: Final = 64  # in the optional header
_SIZE_OF_HEADERS_AT: Final = 60
_DIRECTORIES_AT: Final = {_PE32: 96, _PE32_PLUS: 112}
_CERTIFICATES: Final = 4  # which of the directories
_DIRECTORY_SIZE: Final = 8
_SECTION_SIZE: Final = 40
_SECTIONS_LIMIT: Final = 96  # Microsoft, "PE Format", "COFF File Header"


class _Layout(NamedTuple):
    """Where in the file what is.

    Attributes:
        checksum: offset of the checksum, 4 bytes.
        certificates: offset of the directory entry of the signatures, 8 bytes; none where there are fewer directories.
        headers: how long the headers are.
        sections: offset and length of each section, in their order in the file.
        signatures: how many bytes at the end are signatures.
    """

    checksum: int
    certificates: int | None
    headers: int
    sections: tuple[tuple[int, int], ...]
    signatures: int


def program_digests(data: bytes, banks: Iterable[str], name: str) -> dict[str, bytes]:
    """The digests by which firmware measures the EFI program ``data``, by bank; ``name`` is for the errors.

    Raises:
        UsageError: it is no EFI program, or one that contradicts itself.
    """
    try:
        layout = _layout(data)
    except struct.error as error:
        raise _no_program(name) from error
    if layout is None:
        raise _no_program(name)
    found = {}
    for bank in banks:
        digest = hashlib.new(bank, usedforsecurity=False)
        for part in _measured(memoryview(data), layout):
            digest.update(part)
        found[bank] = digest.digest()
    return found


def _measured(data: memoryview, layout: _Layout) -> Iterator[memoryview]:
    yield data[: layout.checksum]
    after = layout.checksum + 4
    if layout.certificates is not None:
        yield data[after : layout.certificates]
        after = layout.certificates + _DIRECTORY_SIZE
    yield data[after : layout.headers]
    end = layout.headers
    for at, length in layout.sections:
        yield data[at : at + length]
        end += length
    yield data[end : len(data) - layout.signatures]


def _layout(data: bytes) -> _Layout | None:
    """None where the data contradicts itself; struct.error where it ends too early."""
    (pe,) = struct.unpack_from("<I", data, _PE_OFFSET_AT)
    signature, _, count, optional_size = struct.unpack_from("<4sHH12xH", data, pe)
    optional = pe + _COFF_SIZE
    (magic,) = struct.unpack_from("<H", data, optional)
    if data[:2] != b"MZ" or signature != b"PE\0\0" or magic not in _DIRECTORIES_AT or count > _SECTIONS_LIMIT:
        return None
    (headers,) = struct.unpack_from("<I", data, optional + _SIZE_OF_HEADERS_AT)
    directories = optional + _DIRECTORIES_AT[magic]
    (how_many,) = struct.unpack_from("<I", data, directories - 4)
    certificates = directories + _CERTIFICATES * _DIRECTORY_SIZE if how_many > _CERTIFICATES else None
    signatures = struct.unpack_from("<4xI", data, certificates)[0] if certificates is not None else 0
    sections = _sections(data, optional + optional_size, count)
    end = headers + sum(length for _, length in sections)
    if not optional + optional_size <= headers or end + signatures > len(data):
        return None
    if any(at + length > len(data) for at, length in sections):
        return None
    return _Layout(optional + _CHECKSUM_AT, certificates, headers, sections, signatures)


def _sections(data: bytes, table: int, count: int) -> tuple[tuple[int, int], ...]:
    found = []
    for number in range(count):
        length, at = struct.unpack_from("<16xII", data, table + number * _SECTION_SIZE)
        if length:
            found.append((at, length))
    return tuple(sorted(found))


def _no_program(name: str) -> UsageError:
    return UsageError(f"{name} is no EFI program", hint="a kernel, boot loader or unified kernel image: a .efi file")
