"""The parts of a boot, and which of them an entry belongs to."""

from __future__ import annotations

import enum
import re
from typing import Final


class Component(enum.StrEnum):
    """A part of the boot."""

    FIRMWARE = "firmware"
    FIRMWARE_SETTINGS = "firmware settings"
    BOOT_ORDER = "boot order"
    DRIVERS = "option ROMs and drivers"
    DRIVER_SETTINGS = "option ROMs' settings"
    BOOT_LOADER = "boot loader"
    BOOT_LOADER_FILES = "boot loader's files"
    BOOT_COMMANDS = "boot loader's commands"
    PARTITION_TABLE = "partition table"
    SECURE_BOOT = "Secure Boot"
    OWNER_KEYS = "machine owner's keys"
    KERNEL = "kernel"
    COMMAND_LINE = "kernel command line"
    INITRD = "initial RAM disk"
    EXTENSIONS = "system extensions"
    IMA = "files that IMA measured"
    SYSTEM = "system identity"
    BOOT_PROCESS = "course of the boot"
    OTHER = "other"


PCR_COMPONENTS: Final = {
    0: Component.FIRMWARE,
    1: Component.FIRMWARE_SETTINGS,
    2: Component.DRIVERS,
    3: Component.DRIVER_SETTINGS,
    4: Component.BOOT_LOADER,
    5: Component.PARTITION_TABLE,
    6: Component.FIRMWARE_SETTINGS,
    7: Component.SECURE_BOOT,
    8: Component.BOOT_COMMANDS,
    9: Component.BOOT_LOADER_FILES,
    10: Component.IMA,
    11: Component.KERNEL,
    12: Component.COMMAND_LINE,
    13: Component.EXTENSIONS,
    14: Component.OWNER_KEYS,
    15: Component.SYSTEM,
}
"""What is measured into a PCR: TCG PC Client Platform Firmware Profile 1.05 rev 23, 3.3.4 (0 to 7); the Linux TPM PCR
Registry of the UAPI group (8 to 15)."""

_KERNEL_FILE: Final = re.compile(r"vmlinu[xz]|bzimage|kernel|\\efi\\linux\\")
_INITRD_FILE: Final = re.compile(r"initrd|initramfs")
_COMMAND_LINES: Final = ("kernel_cmdline", "grub_kernel_cmdline")
_COMMAND: Final = re.compile(r"(grub_cmd|kernel_cmdline|module_cmdline|grub_kernel_cmdline): (\S*)")


def of_program(pcr: int, path: str) -> Component:
    """Which part a program from ``path`` is that was measured into ``pcr``: a kernel goes by its name.

    A program without a path was in memory already, when a boot loader started it: as GRUB starts a kernel.
    """
    usual = PCR_COMPONENTS.get(pcr, Component.OTHER)
    if usual is Component.BOOT_LOADER and (not path or _KERNEL_FILE.search(path.lower())):
        return Component.KERNEL
    return usual


def of_text(pcr: int, text: str) -> tuple[Component, str]:
    """Which part a boot loader's ``text`` is about that was measured into ``pcr``; and its subject."""
    usual = PCR_COMPONENTS.get(pcr, Component.OTHER)
    command = _COMMAND.match(text)
    if command is not None:
        by, name = command.groups()
        return (Component.COMMAND_LINE, by) if by in _COMMAND_LINES else (usual, f"{by} {name}")
    if usual is Component.BOOT_LOADER_FILES:
        if _KERNEL_FILE.search(text.lower()):
            return Component.KERNEL, f"file {text}"
        if _INITRD_FILE.search(text.lower()):
            return Component.INITRD, f"file {text}"
    return usual, f"text {text}"
