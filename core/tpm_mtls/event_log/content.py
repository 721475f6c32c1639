"""What firmware, boot loaders and the kernel write into an entry's data: for words only, never for a decision.

Each function gives none where the data is not what it reads: an entry's data is free, and a strange one is no reason to
refuse a log.

UEFI Specification 2.10: 3.1.3 (load options), 8.2 (variables), 10.3 (device paths). TCG PC Client Platform Firmware
Profile 1.05 rev 23, 10.2.3 (UEFI_IMAGE_LOAD_EVENT), 10.2.6 (UEFI_VARIABLE_DATA).
"""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple

from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log.cursor import Cursor

SHOWN: Final = 300
"""Characters of a text from a log that are shown: enough for most command lines."""

_WHAT = "entry"
_MEDIA, _HARDWARE_END = 0x04, 0x7F
_FILE_PATH, _FIRMWARE_FILE, _FIRMWARE_VOLUME = 0x04, 0x06, 0x07
_NODE_HEADER: Final = 4


class Variable(NamedTuple):
    """A UEFI variable.

    Attributes:
        name: its name.
        content: its value.
    """

    name: str
    content: bytes


def printable(text: str) -> str:
    """``text`` without control characters, which would command a terminal, and not longer than `SHOWN`."""
    shown = "".join(each if each.isprintable() else "?" for each in text[: SHOWN + 1])
    return shown if len(text) <= SHOWN else shown[:SHOWN] + "…"


def variable(data: bytes) -> Variable | None:
    """The UEFI variable in ``data``: UEFI_VARIABLE_DATA."""
    try:
        cursor = Cursor(data, _WHAT)
        cursor.take(16)  # VariableName, a GUID: whose variable it is
        characters, size = cursor.number(8), cursor.number(8)
        name = cursor.take(2 * characters).decode("utf-16-le")
        content = cursor.take(size)
        cursor.end()
    except (EvidenceError, UnicodeDecodeError):
        return None
    return Variable(printable(name), content)


def program(data: bytes) -> str | None:
    """From where a program was loaded: the path in a UEFI_IMAGE_LOAD_EVENT, empty for one that has none."""
    try:
        cursor = Cursor(data, _WHAT)
        cursor.take(8 + 8 + 8)  # where it was in memory, how long, and where it was linked to be
        path = cursor.take(cursor.number(8))
        cursor.end()
        return _device_path(path)
    except (EvidenceError, UnicodeDecodeError):
        return None


def blob(data: bytes) -> tuple[int, int] | None:
    """Where a piece of the firmware was in memory, and how long it is: UEFI_PLATFORM_FIRMWARE_BLOB."""
    try:
        cursor = Cursor(data, _WHAT)
        found = cursor.number(8), cursor.number(8)
        cursor.end()
    except EvidenceError:
        return None
    return found


def tagged(data: bytes) -> tuple[int, bytes] | None:
    """The tag, and what is tagged: TCG_PCClientTaggedEvent."""
    try:
        cursor = Cursor(data, _WHAT)
        tag = cursor.number(4)
        content = cursor.take(cursor.number(4))
        cursor.end()
    except EvidenceError:
        return None
    return tag, content


def boot_option(content: bytes) -> str | None:
    """What the boot option in a variable ``Boot####`` is called: EFI_LOAD_OPTION."""
    try:
        cursor = Cursor(content, _WHAT)
        cursor.take(4 + 2)  # attributes; length of the device path, which comes after the name
        name = bytearray()
        while (character := cursor.take(2)) != b"\0\0":
            name += character
        return printable(name.decode("utf-16-le"))
    except (EvidenceError, UnicodeDecodeError):
        return None


def boot_order(content: bytes) -> str:
    """The boot options in their order, as in the variable ``BootOrder``."""
    numbers = (int.from_bytes(content[at : at + 2], "little") for at in range(0, len(content), 2))
    return printable(", ".join(f"Boot{number:04X}" for number in numbers))


def text(data: bytes) -> str | None:
    """The text in ``data``, in UTF-8 or as UEFI writes Latin letters (UTF-16), with zeros at its end or without."""
    encoding = "utf-16-le" if data and not len(data) % 2 and not any(data[1::2]) else "utf-8"
    try:
        found = data.decode(encoding).rstrip("\0").replace("\n", " ").strip()
    except UnicodeDecodeError:
        return None
    return printable(found) if found and found.isprintable() else None


def _device_path(path: bytes) -> str:
    """The file's name, or the GUIDs by which firmware names its own files."""
    cursor = Cursor(path, _WHAT)
    names = []
    while cursor.left:
        kind, subtype, length = cursor.number(1), cursor.number(1), cursor.number(2)
        content = cursor.take(max(length - _NODE_HEADER, 0))
        if kind == _HARDWARE_END:
            break
        if (kind, subtype) == (_MEDIA, _FILE_PATH):
            names.append(content.decode("utf-16-le").rstrip("\0"))
        elif kind == _MEDIA and subtype in {_FIRMWARE_FILE, _FIRMWARE_VOLUME}:
            names.append(str(uuid.UUID(bytes_le=content)) if len(content) == 16 else "?")  # noqa: PLR2004 - a GUID
    return printable("/".join(names))
