"""The names of a TPM's properties and of its makers."""

from __future__ import annotations

from typing import Final

FAMILY: Final = 0x100
LEVEL: Final = 0x101
REVISION: Final = 0x102
VENDOR_STRINGS: Final = range(0x106, 0x10A)

_NAMES: Final = {
    0x100: "FAMILY_INDICATOR", 0x101: "LEVEL", 0x102: "REVISION", 0x103: "DAY_OF_YEAR", 0x104: "YEAR",
    0x105: "MANUFACTURER", 0x106: "VENDOR_STRING_1", 0x107: "VENDOR_STRING_2", 0x108: "VENDOR_STRING_3",
    0x109: "VENDOR_STRING_4", 0x10A: "VENDOR_TPM_TYPE", 0x10B: "FIRMWARE_VERSION_1", 0x10C: "FIRMWARE_VERSION_2",
    0x10D: "INPUT_BUFFER", 0x10E: "HR_TRANSIENT_MIN", 0x10F: "HR_PERSISTENT_MIN", 0x110: "HR_LOADED_MIN",
    0x111: "ACTIVE_SESSIONS_MAX", 0x112: "PCR_COUNT", 0x113: "PCR_SELECT_MIN", 0x114: "CONTEXT_GAP_MAX",
    0x116: "NV_COUNTERS_MAX", 0x117: "NV_INDEX_MAX", 0x118: "MEMORY", 0x119: "CLOCK_UPDATE",
    0x11A: "CONTEXT_HASH", 0x11B: "CONTEXT_SYM", 0x11C: "CONTEXT_SYM_SIZE", 0x11D: "ORDERLY_COUNT",
    0x11E: "MAX_COMMAND_SIZE", 0x11F: "MAX_RESPONSE_SIZE", 0x120: "MAX_DIGEST", 0x121: "MAX_OBJECT_CONTEXT",
    0x122: "MAX_SESSION_CONTEXT", 0x123: "PS_FAMILY_INDICATOR", 0x124: "PS_LEVEL", 0x125: "PS_REVISION",
    0x126: "PS_DAY_OF_YEAR", 0x127: "PS_YEAR", 0x128: "SPLIT_MAX", 0x129: "TOTAL_COMMANDS",
    0x12A: "LIBRARY_COMMANDS", 0x12B: "VENDOR_COMMANDS", 0x12C: "NV_BUFFER_MAX", 0x12D: "MODES",
    0x12E: "MAX_CAP_BUFFER",
    0x200: "PERMANENT", 0x201: "STARTUP_CLEAR", 0x202: "HR_NV_INDEX", 0x203: "HR_LOADED", 0x204: "HR_LOADED_AVAIL",
    0x205: "HR_ACTIVE", 0x206: "HR_ACTIVE_AVAIL", 0x207: "HR_TRANSIENT_AVAIL", 0x208: "HR_PERSISTENT",
    0x209: "HR_PERSISTENT_AVAIL", 0x20A: "NV_COUNTERS", 0x20B: "NV_COUNTERS_AVAIL", 0x20C: "ALGORITHM_SET",
    0x20D: "LOADED_CURVES", 0x20E: "LOCKOUT_COUNTER", 0x20F: "MAX_AUTH_FAIL", 0x210: "LOCKOUT_INTERVAL",
    0x211: "LOCKOUT_RECOVERY", 0x212: "NV_WRITE_RECOVERY", 0x213: "AUDIT_COUNTER_0", 0x214: "AUDIT_COUNTER_1",
}  # fmt: skip
"""TPM_PT, without the prefix: TPM 2.0 Library part 2 rev 1.59, 6.13, table 23."""

VENDORS: Final = {
    "AMD": "AMD",
    "ATML": "Microchip (Atmel)",
    "BRCM": "Broadcom",
    "CSCO": "Cisco",
    "FLYS": "Flyslice",
    "GOOG": "Google",
    "HISI": "HiSilicon",
    "IBM": "IBM, or a simulator made of its code",
    "IFX": "Infineon",
    "INTC": "Intel",
    "MSFT": "Microsoft",
    "NTC": "Nuvoton",
    "NTZ": "Nationz",
    "QCOM": "Qualcomm",
    "ROCC": "Rockchip",
    "SMSN": "Samsung",
    "STM": "STMicroelectronics",
}
"""TPM_PT_MANUFACTURER, without trailing blanks: TCG Vendor ID Registry version 1.06."""


def property_name(number: int) -> str:
    """The name of a property, such as ``HR_TRANSIENT_MIN``; an unknown one as a hexadecimal number."""
    return _NAMES.get(number, f"{number:#x}")
