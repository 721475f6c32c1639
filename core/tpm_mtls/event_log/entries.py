"""An event log as values: entries, each with a PCR and what was measured into it.

TCG PC Client Platform Firmware Profile 1.05 rev 23, 10 (event logging).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HASHES: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""The hash algorithms whose banks are replayed: TPM_ALG_ID, TCG Algorithm Registry rev 1.32, table 3."""


class EventType(enum.IntEnum):
    """What an entry claims to be: TCG PC Client Platform Firmware Profile 1.05 rev 23, 10.4.1. Not measured."""

    EV_PREBOOT_CERT = 0x00000000
    EV_POST_CODE = 0x00000001
    EV_UNUSED = 0x00000002
    EV_NO_ACTION = 0x00000003
    EV_SEPARATOR = 0x00000004
    EV_ACTION = 0x00000005
    EV_EVENT_TAG = 0x00000006
    EV_S_CRTM_CONTENTS = 0x00000007
    EV_S_CRTM_VERSION = 0x00000008
    EV_CPU_MICROCODE = 0x00000009
    EV_PLATFORM_CONFIG_FLAGS = 0x0000000A
    EV_TABLE_OF_DEVICES = 0x0000000B
    EV_COMPACT_HASH = 0x0000000C
    EV_IPL = 0x0000000D
    EV_IPL_PARTITION_DATA = 0x0000000E
    EV_NONHOST_CODE = 0x0000000F
    EV_NONHOST_CONFIG = 0x00000010
    EV_NONHOST_INFO = 0x00000011
    EV_OMIT_BOOT_DEVICE_EVENTS = 0x00000012
    EV_POST_CODE2 = 0x00000013
    EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EV_EFI_VARIABLE_BOOT = 0x80000002
    EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EV_EFI_BOOT_SERVICES_DRIVER = 0x80000004
    EV_EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
    EV_EFI_GPT_EVENT = 0x80000006
    EV_EFI_ACTION = 0x80000007
    EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
    EV_EFI_HANDOFF_TABLES = 0x80000009
    EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
    EV_EFI_HANDOFF_TABLES2 = 0x8000000B
    EV_EFI_VARIABLE_BOOT2 = 0x8000000C
    EV_EFI_GPT_EVENT2 = 0x8000000D
    EV_EFI_HCRTM_EVENT = 0x80000010
    EV_EFI_VARIABLE_AUTHORITY = 0x800000E0
    EV_EFI_SPDM_FIRMWARE_BLOB = 0x800000E1
    EV_EFI_SPDM_FIRMWARE_CONFIG = 0x800000E2
    EV_EFI_SPDM_DEVICE_POLICY = 0x800000E3
    EV_EFI_SPDM_DEVICE_AUTHORITY = 0x800000E4


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an event log.

    Attributes:
        number: its place in the log, from 0.
        pcr: the PCR that it says it was measured into.
        type: what it claims to be, an `EventType` or another number; not measured.
        digests: what the PCR was extended with, by bank (``sha256``; a hash that is not known here as ``0x0012``).
        data: what the writer of the log says about it; measured only where a digest is that of the data.
    """

    number: int
    pcr: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes

    @property
    def extends(self) -> bool:
        """Whether it says that a PCR was extended: all but EV_NO_ACTION do.

        Whoever calls an entry that did extend a PCR EV_NO_ACTION, or the other way round, gets a log that does not
        lead to the PCR's value.
        """
        return self.type != EventType.EV_NO_ACTION

    @property
    def type_name(self) -> str:
        """Its type as the standard calls it, or as a hexadecimal number."""
        try:
            return EventType(self.type).name
        except ValueError:
            return f"{self.type:#010x}"


@dataclass(frozen=True, slots=True)
class EventLog:
    """An event log. Nobody has verified that it is what happened: see `tpm_mtls.event_log.mismatches`.

    Attributes:
        entries: all of them, in their order.
        banks: the PCR banks that it can be replayed for, such as ``sha256``.
        crypto_agile: whether it has the format with several banks; else it is the older one with SHA-1.
        startup_locality: from where the TPM was started: 0, 3, or 4 (by the hardware). The first value of PCR 0.
    """

    entries: tuple[Entry, ...]
    banks: tuple[str, ...]
    crypto_agile: bool
    startup_locality: int

    def measured_into(self, pcr: int) -> tuple[Entry, ...]:
        """The entries that extended ``pcr``, in their order."""
        return tuple(entry for entry in self.entries if entry.pcr == pcr and entry.extends)

    @property
    def pcrs(self) -> tuple[int, ...]:
        """The PCRs that it has entries for, ascending."""
        return tuple(sorted({entry.pcr for entry in self.entries if entry.extends}))
