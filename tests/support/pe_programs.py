"""EFI programs for tests: PE files of known parts."""

from __future__ import annotations

import struct
from typing import Final

PE_AT: Final = 0x80
OPTIONAL_AT: Final = PE_AT + 24
CHECKSUM_AT: Final = OPTIONAL_AT + 64
DIRECTORIES: Final = {0x10B: 96, 0x20B: 112}
HEADERS: Final = 0x400


def certificates_at(magic: int = 0x20B) -> int:
    """Offset of the directory entry of the signatures."""
    return OPTIONAL_AT + DIRECTORIES[magic] + 4 * 8


def pe_program(
    *sections: bytes, magic: int = 0x20B, trailing: bytes = b"", signature: bytes = b"", directories: int = 16
) -> bytes:
    """A PE file: headers, ``sections`` in their order, then ``trailing`` data and a ``signature``."""
    optional_size = DIRECTORIES[magic] + directories * 8
    header = bytearray(HEADERS)
    header[:2] = b"MZ"
    struct.pack_into("<I", header, 0x3C, PE_AT)
    struct.pack_into("<4sHHIIIHH", header, PE_AT, b"PE\0\0", 0x8664, len(sections), 0, 0, 0, optional_size, 0x22)
    struct.pack_into("<H", header, OPTIONAL_AT, magic)
    struct.pack_into("<I", header, OPTIONAL_AT + 60, HEADERS)
    struct.pack_into("<I", header, CHECKSUM_AT, 0x12345678)
    struct.pack_into("<I", header, OPTIONAL_AT + DIRECTORIES[magic] - 4, directories)
    at, table = HEADERS, OPTIONAL_AT + optional_size
    end = HEADERS + sum(map(len, sections)) + len(trailing)
    if directories > 4 and signature:
        struct.pack_into("<II", header, certificates_at(magic), end, len(signature))
    for number, content in enumerate(sections):
        struct.pack_into("<8sIIII", header, table + 40 * number, b"s%d" % number, 0, 0, len(content), at)
        at += len(content)
    return bytes(header) + b"".join(sections) + trailing + signature
