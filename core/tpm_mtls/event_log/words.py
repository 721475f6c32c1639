"""What an entry of an event log is about, in words for people.

The words come from the entry's type and data. Both are the log's own claim: `Description.measured` says for how much of
them the digest stands, which a PCR's value vouches for. No decision may rest on the words; which entries there are, and
what changed between two logs, is found out by PCR and digest alone (`tpm_mtls.event_log.compare`).
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tpm_mtls.event_log import content
from tpm_mtls.event_log.components import PCR_COMPONENTS, Component, of_program, of_text
from tpm_mtls.event_log.entries import HASHES, EventType
from tpm_mtls.event_log.signatures import authority, in_words, signatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tpm_mtls.event_log.entries import Entry

SIGNATURE_LISTS: Final = ("PK", "KEK", "db", "dbx", "dbt", "dbr")
"""The variables of Secure Boot that are lists of certificates and hashes: UEFI Specification 2.10, 3.3."""

_INITRD_TAG: Final = 0x8F3B22EC  # INITRD_EVENT_TAG_ID and LOAD_OPTIONS_EVENT_TAG_ID: Linux, libstub/efistub.h
_LOAD_OPTIONS_TAG: Final = 0x8F3B22ED
_BIOS_TAGS: Final = {1: "SMBIOS tables", 7: "an option ROM", 8: "an option ROM's configuration"}
"""Tags of a BIOS: TCG PC Client Specific Implementation Specification for Conventional BIOS 1.21, 11.3.2."""

_ON_OFF: Final = {b"\0": "off", b"\1": "on"}


class Measured(enum.StrEnum):
    """For how much of an entry's words its digest stands."""

    ALL = "all"
    """The digest is that of the data: all of it was measured."""

    CONTENT = "content"
    """The digest is that of the content (a command, a variable's value), not of what the log calls it."""

    NOTHING = "nothing"
    """The digest is that of something else, usually a program or a file; its name is only what the log says."""


@dataclass(frozen=True)
class Description:
    """An entry in words.

    Attributes:
        component: what part of the boot it belongs to.
        subject: what it is about, the same in another log where that thing was another one.
        text: for people; printable, one line.
        measured: for how much of it the digest stands.
    """

    component: Component
    subject: str
    text: str
    measured: Measured


class _Words(NamedTuple):
    component: Component
    subject: str
    text: str


def describe(entry: Entry) -> Description:
    """``entry`` in words. Where its data is not what its type promises, the words are about type and PCR only."""
    words = _by_type(entry) or _plain(entry)
    return Description(*words, measured=_measured(entry))


def secure_boot_list(entry: Entry) -> content.Variable | None:
    """The list of Secure Boot that ``entry`` says it is about; none if it is about something else."""
    found = content.variable(entry.data) if entry.type == EventType.EV_EFI_VARIABLE_DRIVER_CONFIG else None
    return found if found is not None and found.name in SIGNATURE_LISTS else None


def _by_type(entry: Entry) -> _Words | None:
    function = _FUNCTIONS.get(entry.type)
    return function(entry) if function is not None else None


def _plain(entry: Entry) -> _Words:
    component = PCR_COMPONENTS.get(entry.pcr, Component.OTHER)
    found = content.text(entry.data)
    return _Words(component, entry.type_name, f"{entry.type_name} {found}" if found else entry.type_name)


def _separator(entry: Entry) -> _Words | None:
    return _Words(Component.BOOT_PROCESS, "separator", f"separator {entry.data[:4].hex()}: the firmware hands over")


def _action(entry: Entry) -> _Words | None:
    found = content.text(entry.data)
    return _Words(Component.BOOT_PROCESS, f"action {found}", f'"{found}"') if found else None


def _variable(entry: Entry) -> _Words | None:
    found = content.variable(entry.data)
    if found is None:
        return None
    component, name = PCR_COMPONENTS.get(entry.pcr, Component.OTHER), found.name
    if entry.type == EventType.EV_EFI_VARIABLE_AUTHORITY:
        what = authority(found.content) or content.text(found.content) or "an entry"
        return _Words(component, f"authority {name}", f"authority {name}: {what}")
    if name.startswith("Boot") and (option := _boot_option(found)):
        return _Words(Component.BOOT_ORDER, f"variable {name}", option)
    return _Words(component, f"variable {name}", _value(found))


def _boot_option(found: content.Variable) -> str | None:
    if found.name == "BootOrder":
        return f"boot order {content.boot_order(found.content)}"
    option = content.boot_option(found.content)
    return f'boot option {found.name} "{option}"' if option is not None else None


def _value(found: content.Variable) -> str:
    if found.name == "SecureBoot" and found.content in _ON_OFF:
        return f"Secure Boot is {_ON_OFF[found.content]}"
    if found.name in SIGNATURE_LISTS and (listed := signatures(found.content)) is not None:
        return f"variable {found.name}: {in_words(listed)}"
    return f"variable {found.name}, {len(found.content)} bytes"


def _program(entry: Entry) -> _Words | None:
    path = content.program(entry.data)
    if path is None:
        return None
    where = path or "without a file name"
    return _Words(of_program(entry.pcr, path), f"program {path.lower()}", f"program {where}")


def _blob(entry: Entry) -> _Words | None:
    found = content.blob(entry.data)
    if found is None:
        return None
    base, length = found
    return _Words(Component.FIRMWARE, f"firmware at {base:#x}", f"firmware at {base:#x}, {length} bytes")


def _version(entry: Entry) -> _Words | None:
    found = content.text(entry.data) or entry.data[:16].hex()
    return _Words(Component.FIRMWARE, "firmware version", f"firmware version {found}")


def _text(entry: Entry) -> _Words | None:
    found = content.text(entry.data)
    if found is None:
        return None
    component, subject = of_text(entry.pcr, found)
    return _Words(component, subject, found)


def _tag(entry: Entry) -> _Words | None:
    found = content.tagged(entry.data)
    if found is None:
        return None
    tag, tagged = found
    if tag == _LOAD_OPTIONS_TAG:
        return _Words(Component.COMMAND_LINE, "load options", "the command line that the kernel was started with")
    if tag == _INITRD_TAG:
        return _Words(Component.INITRD, "initrd", "the initial RAM disk that the kernel loaded")
    if tag in _BIOS_TAGS and entry.pcr in {1, 2, 3}:
        return _Words(PCR_COMPONENTS[entry.pcr], f"tag {tag}", f"{_BIOS_TAGS[tag]} {tagged[-20:].hex()}")
    name = content.text(tagged)
    words = f"tag {tag:#010x} {name}" if name else f"tag {tag:#010x}"
    return _Words(PCR_COMPONENTS.get(entry.pcr, Component.OTHER), words, words)


_FUNCTIONS: Final[dict[int, Callable[[Entry], _Words | None]]] = {
    EventType.EV_SEPARATOR: _separator,
    EventType.EV_ACTION: _action,
    EventType.EV_EFI_ACTION: _action,
    EventType.EV_EFI_VARIABLE_DRIVER_CONFIG: _variable,
    EventType.EV_EFI_VARIABLE_BOOT: _variable,
    EventType.EV_EFI_VARIABLE_BOOT2: _variable,
    EventType.EV_EFI_VARIABLE_AUTHORITY: _variable,
    EventType.EV_EFI_BOOT_SERVICES_APPLICATION: _program,
    EventType.EV_EFI_BOOT_SERVICES_DRIVER: _program,
    EventType.EV_EFI_RUNTIME_SERVICES_DRIVER: _program,
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB: _blob,
    EventType.EV_S_CRTM_VERSION: _version,
    EventType.EV_IPL: _text,
    EventType.EV_EVENT_TAG: _tag,
}


def _measured(entry: Entry) -> Measured:
    if _stands_for(entry, entry.data) or _stands_for(entry, entry.data.rstrip(b"\0")):
        return Measured.ALL
    return Measured.CONTENT if any(_stands_for(entry, each) for each in _contents(entry)) else Measured.NOTHING


def _contents(entry: Entry) -> Iterator[bytes]:
    """What is measured of the data where it is not all."""
    found = content.variable(entry.data)
    if found is not None:
        yield found.content  # EV_EFI_VARIABLE_BOOT: only the value (PFP, 10.4.1)
    _, separator, command = entry.data.partition(b": ")
    if separator:
        yield command.removesuffix(b"\0")  # GRUB's "grub_cmd: …", "kernel_cmdline: …": grub-core/lib/tpm.c


def _stands_for(entry: Entry, data: bytes) -> bool:
    """Whether all the digests of ``entry`` are those of ``data``, of hashes that are known here."""
    known = [(bank, digest) for bank, digest in entry.digests.items() if bank in HASHES.values()]
    return bool(known) and all(
        hashlib.new(bank, data, usedforsecurity=False).digest() == digest for bank, digest in known
    )
