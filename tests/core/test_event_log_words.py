"""Event logs in words, and for how much of them the digests stand."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from support.certificates import TestCa
from support.event_logs import entry, locality_entry, program_data, recorded, signature_list, variable_data, with_data
from tpm_mtls.event_log import Component, EventType, Measured, describe
from tpm_mtls.event_log.content import SHOWN, printable
from tpm_mtls.event_log.signatures import certificate_name, in_words, signatures

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = EventType.EV_EFI_VARIABLE_DRIVER_CONFIG
AUTHORITY = EventType.EV_EFI_VARIABLE_AUTHORITY
BOOT = EventType.EV_EFI_VARIABLE_BOOT
PROGRAM = EventType.EV_EFI_BOOT_SERVICES_APPLICATION
TAG = EventType.EV_EVENT_TAG

COMMAND_LINE = (
    "/vmlinuz console=ttyS0 panic=-1 root=/dev/nvme0n1 net.ifnames=0 rw quiet init=/usr/local/sbin/guest-init"
)
SECURE_BOOT = {
    1: ("firmware", "all", "firmware version 0000"),
    2: ("firmware", "nothing", "firmware at 0x820000, 917504 bytes"),
    4: ("Secure Boot", "all", "Secure Boot is on"),
    5: ("Secure Boot", "all", 'variable PK: certificate "Debian UEFI Secure Boot (PK/KEK key)"'),
    8: ("Secure Boot", "all", "variable dbx: 1 hash"),
    9: ("course of the boot", "all", "separator 00000000: the firmware hands over"),
    10: ("boot order", "content", "boot order Boot0001, Boot0000, Boot0002"),
    11: ("boot order", "content", 'boot option Boot0001 "UEFI Non-Block Boot Device"'),
    14: ("course of the boot", "all", '"Calling EFI Application from Boot Option"'),
    22: ("Secure Boot", "all", "authority db: Microsoft Corporation UEFI CA 2011"),
    23: ("boot loader", "nothing", r"program \EFI\BOOT\BOOTX64.EFI"),
    24: ("machine owner's keys", "nothing", "MokList"),
    26: ("Secure Boot", "all", "authority SbatLevel: sbat,1,2025021800 shim,4 grub,5"),
    28: ("Secure Boot", "all", "authority MokListRT: Debian Secure Boot CA"),
    29: ("boot loader", "nothing", r"program \EFI\BOOT\grubx64.efi"),
    30: ("boot loader's files", "nothing", "(hd0)/EFI/debian/grub.cfg"),
    32: ("boot loader's commands", "content", "grub_cmd: search --no-floppy --label ESP --set=root"),
    34: ("kernel", "nothing", "/vmlinuz"),
    35: ("kernel", "nothing", "program without a file name"),
    36: (
        "kernel command line",
        "content",
        f"kernel_cmdline: {COMMAND_LINE}",
    ),
    38: ("kernel command line", "nothing", "the command line that the kernel was started with"),
    40: ("course of the boot", "all", '"Exit Boot Services Returned with Success"'),
}


@pytest.mark.parametrize("number", SECURE_BOOT)
def test_a_recorded_boot_in_words(number: int) -> None:
    about = describe(recorded("uefi-secureboot").entries[number])
    assert (about.component, about.measured, about.text) == SECURE_BOOT[number]


@pytest.mark.parametrize(
    ("name", "number", "component", "text"),
    [
        ("bios", 1, Component.FIRMWARE_SETTINGS, "SMBIOS tables be8e75cd80ffd6e70fdb0a1163ea3c4a03dcb59c"),
        ("bios", 3, Component.DRIVERS, "an option ROM 70070146e58e809c0bf58065f9e11feb579dfc72"),
        ("bios", 5, Component.BOOT_PROCESS, '"Calling INT 19h"'),
        ("uefi", 4, Component.SECURE_BOOT, "Secure Boot is off"),
        ("uefi", 7, Component.SECURE_BOOT, "variable db: nothing"),
        ("uefi", 10, Component.KERNEL, "program kernel"),
    ],
)
def test_other_recorded_boots_in_words(name: str, number: int, component: Component, text: str) -> None:
    about = describe(recorded(name).entries[number])
    assert (about.component, about.text) == (component, text)


def test_the_digest_no_longer_stands_for_data_that_was_rewritten() -> None:
    """Whoever rewrites the log's words cannot rewrite what was measured."""
    log = recorded("uefi-secureboot")
    for number, before in ((4, Measured.ALL), (11, Measured.CONTENT), (36, Measured.CONTENT)):
        each = log.entries[number]
        assert describe(each).measured is before
        lie = dataclasses.replace(each, data=each.data[:-2] + bytes([each.data[-2] ^ 1]) + each.data[-1:])
        assert describe(lie).measured is Measured.NOTHING


def test_a_digest_of_one_bank_does_not_stand_for_the_others() -> None:
    each = recorded("uefi-secureboot").entries[4]
    lie = dataclasses.replace(each, digests={**each.digests, "sha384": bytes(48)})
    assert describe(lie).measured is Measured.NOTHING
    assert describe(dataclasses.replace(each, digests={})).measured is Measured.NOTHING
    unknown = dataclasses.replace(each, digests={**each.digests, "0x0012": bytes(32)})
    assert describe(unknown).measured is Measured.ALL


def test_zeros_at_the_end_of_a_text_need_not_be_measured() -> None:
    assert describe(entry(8, EventType.EV_IPL, b"text\0", measured=b"text")).measured is Measured.ALL


@pytest.mark.parametrize(
    ("pcr", "event_type", "data", "component", "text"),
    [
        (
            4,
            PROGRAM,
            program_data(r"\EFI\Linux\debian-6.12.efi"),
            Component.KERNEL,
            r"program \EFI\Linux\debian-6.12.efi",
        ),
        (4, PROGRAM, program_data(r"\vmlinuz-6.12"), Component.KERNEL, r"program \vmlinuz-6.12"),
        (2, EventType.EV_EFI_BOOT_SERVICES_DRIVER, program_data(""), Component.DRIVERS, "program without a file name"),
        (
            0,
            EventType.EV_EFI_RUNTIME_SERVICES_DRIVER,
            struct.pack("<QQQQ", 0, 0, 0, 24) + b"\4\6\x14\0" + bytes(range(16)) + b"\x7f\xff\4\0",
            Component.FIRMWARE,
            "program 03020100-0504-0706-0809-0a0b0c0d0e0f",
        ),
        (2, PROGRAM, struct.pack("<QQQQ", 0, 0, 0, 5) + b"\4\6\5\0\1", Component.DRIVERS, "program ?"),
        (9, EventType.EV_IPL, b"/initrd.img\0", Component.INITRD, "/initrd.img"),
        (9, EventType.EV_IPL, b"/grub/x.mod\0", Component.BOOT_LOADER_FILES, "/grub/x.mod"),
        (12, EventType.EV_IPL, "quiet\0".encode("utf-16-le"), Component.COMMAND_LINE, "quiet"),
        (11, EventType.EV_IPL, ".linux\0".encode("utf-16-le"), Component.KERNEL, ".linux"),
        (
            9,
            TAG,
            struct.pack("<II", 0x8F3B22EC, 4) + b"LinX",
            Component.INITRD,
            "the initial RAM disk that the kernel loaded",
        ),
        (9, TAG, struct.pack("<II", 0x8F3B22EC, 5) + b"LinX", Component.BOOT_LOADER_FILES, "EV_EVENT_TAG"),
        (13, TAG, struct.pack("<II", 5, 2) + b"ab", Component.EXTENSIONS, "tag 0x00000005 ab"),
        (13, TAG, struct.pack("<II", 5, 2) + b"\1\2", Component.EXTENSIONS, "tag 0x00000005"),
        (0, EventType.EV_S_CRTM_VERSION, "1.2\0".encode("utf-16-le"), Component.FIRMWARE, "firmware version 1.2"),
        (1, BOOT, variable_data("Boot0001", b"12"), Component.FIRMWARE_SETTINGS, "variable Boot0001, 2 bytes"),
        (1, BOOT, variable_data("Setup", b"12"), Component.FIRMWARE_SETTINGS, "variable Setup, 2 bytes"),
        (7, CONFIG, variable_data("SecureBoot", b"12"), Component.SECURE_BOOT, "variable SecureBoot, 2 bytes"),
        (7, CONFIG, variable_data("db", b"12"), Component.SECURE_BOOT, "variable db, 2 bytes"),
        (7, AUTHORITY, variable_data("db", b"\1\2"), Component.SECURE_BOOT, "authority db: an entry"),
        (7, CONFIG, b"", Component.SECURE_BOOT, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
        (7, CONFIG, variable_data("db", b"") + b"x", Component.SECURE_BOOT, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
        (
            7,
            CONFIG,
            bytes(16) + struct.pack("<QQ", 2**64 - 1, 0),
            Component.SECURE_BOOT,
            "EV_EFI_VARIABLE_DRIVER_CONFIG",
        ),
        (
            7,
            CONFIG,
            bytes(16) + struct.pack("<QQ", 1, 0) + b"\0\xd8",
            Component.SECURE_BOOT,
            "EV_EFI_VARIABLE_DRIVER_CONFIG",
        ),
        (4, PROGRAM, b"short", Component.BOOT_LOADER, "EV_EFI_BOOT_SERVICES_APPLICATION short"),
        (0, EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB, b"\1", Component.FIRMWARE, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
        (5, EventType.EV_EFI_ACTION, b"\xff", Component.PARTITION_TABLE, "EV_EFI_ACTION"),
        (5, EventType.EV_EFI_GPT_EVENT, b"\xff", Component.PARTITION_TABLE, "EV_EFI_GPT_EVENT"),
        (8, EventType.EV_IPL, b"\xff\xfe", Component.BOOT_COMMANDS, "EV_IPL"),
        (16, 0x12345678, b"debug", Component.OTHER, "0x12345678 debug"),
    ],
)
def test_other_firmware_and_what_is_not_as_its_type_says(
    pcr: int, event_type: int, data: bytes, component: Component, text: str
) -> None:
    about = describe(entry(pcr, event_type, data))
    assert (about.component, about.text) == (component, text)


def test_a_log_commands_no_terminal() -> None:
    about = describe(entry(7, CONFIG, variable_data("\x1b[2J\x9b\u202e\n", b"")))
    assert about.text == "variable ?[2J???, 0 bytes"
    assert describe(entry(8, EventType.EV_IPL, b"grub_cmd: \x1b[2J")).text == "EV_IPL"
    assert printable("x" * (SHOWN + 1)) == "x" * SHOWN + "…"
    assert printable("x" * SHOWN) == "x" * SHOWN


def test_what_is_not_measured_is_described_too() -> None:
    assert describe(locality_entry(3)).text == "EV_NO_ACTION"


# --- lists of Secure Boot


def test_lists_name_certificates_and_count_hashes(tmp_path: Path) -> None:
    ca = TestCa(tmp_path, "machine")
    ders = [each.public_bytes(Encoding.DER) for each in (ca.root, ca.issuing)]
    content = (
        signature_list("x509", ders[0])
        + signature_list("sha256", bytes(32), b"\1" * 32)
        + signature_list("other", b"x")
    )
    found = signatures(content)
    assert found is not None
    assert in_words(found) == 'certificate "machine root", 2 hashes, 1 entry of another kind'
    assert certificate_name(ders[1]) == "machine issuing CA"
    assert certificate_name(b"0") is None
    assert in_words(signatures(signature_list("x509", b"no certificate")) or ()) == (
        f'certificate "{b"no certificate".hex()}"'
    )
    many = signatures(b"".join(signature_list("x509", bytes([number])) for number in range(10)))
    assert in_words(many or ()).endswith(", 2 certificates more")


@pytest.mark.parametrize("cut", range(1, 76))
def test_a_damaged_list_is_none(cut: int) -> None:
    assert signatures(signature_list("sha256", bytes(32))[:-cut]) is None


def test_a_list_without_room_for_its_entries_is_none() -> None:
    whole = bytearray(signature_list("sha256", bytes(32)))
    whole[24:28] = struct.pack("<I", 16)
    assert signatures(bytes(whole)) is None
    whole[16:20] = bytes(4)
    assert signatures(bytes(whole)) is None


def test_a_variable_that_changed_tells_its_list(tmp_path: Path) -> None:
    db = recorded("uefi-secureboot").entries[7]
    der = TestCa(tmp_path).root.public_bytes(Encoding.DER)
    new = with_data(db, variable_data("db", signature_list("x509", der)))
    assert describe(new).text == 'variable db: certificate "test root"'
    assert describe(new).measured is Measured.ALL
    assert describe(new).subject == describe(db).subject
