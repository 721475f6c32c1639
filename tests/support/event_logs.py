"""Event logs for tests: recorded ones, made ones, changed ones; and a simulated TPM that booted one."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

from support.vectors import vector
from tpm_mtls.event_log import Entry, EventLog, EventType, parse_event_log, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from support.tpm import SimulatedTpm

ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D, "0x0012": 0x0012}
STARTUP_CLEAR = bytes.fromhex("80010000000c000001440000")
H_CRTM = 4  # the locality in which the hardware measures before TPM2_Startup
SIGNATURE_KINDS = {
    "x509": bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072"),
    "sha256": bytes.fromhex("2616c4c14c509240aca941f936934328"),
    "other": bytes(16),
}
RECORDED = ("bios", "uefi", "uefi-secureboot", "uefi-sha256only")
BOOT_PCRS = (*range(10), 14)
"""What the boot measures into; in 10, IMA went on."""


def recorded_bytes(name: str) -> bytes:
    """A recorded event log, as the kernel gave it."""
    return vector(f"eventlog/{name}/binary_bios_measurements")


def recorded(name: str) -> EventLog:
    """A recorded event log."""
    return parse_event_log(recorded_bytes(name))


def recorded_pcrs(name: str, pcrs: Sequence[int] = BOOT_PCRS) -> dict[str, dict[int, bytes]]:
    """What the TPM said then, by bank and PCR."""
    values: dict[str, dict[int, bytes]] = {}
    for line in vector(f"eventlog/{name}/pcrs-sysfs.txt").decode().splitlines():
        bank, pcr, value = line.split()
        if int(pcr) in pcrs:
            values.setdefault(bank, {})[int(pcr)] = bytes.fromhex(value)
    return values


def entry(
    pcr: int, event_type: int, data: bytes, *, measured: bytes | None = None, banks: Sequence[str] = ("sha256",)
) -> Entry:
    """An entry whose digests are those of ``measured``, by default of its data."""
    content = data if measured is None else measured
    return Entry(0, pcr, event_type, {bank: hashlib.new(bank, content).digest() for bank in banks}, data)


def variable_data(name: str, content: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return bytes(16) + struct.pack("<QQ", len(name), len(content)) + name.encode("utf-16-le") + content


def signature_list(kind: str, *entries: bytes) -> bytes:
    """EFI_SIGNATURE_LIST: of certificates (``x509``), hashes (``sha256``), or others; all as long as the first."""
    size = 16 + len(entries[0])
    content = b"".join(b"owner".ljust(16) + each for each in entries)
    return SIGNATURE_KINDS[kind] + struct.pack("<III", 28 + len(content), 0, size) + content


def program_data(path: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT."""
    encoded = (path + "\0").encode("utf-16-le")
    nodes = struct.pack("<BBH", 4, 4, 4 + len(encoded)) + encoded + b"\x7f\xff\4\0" if path else b""
    return struct.pack("<QQQQ", 1, 2, 3, len(nodes)) + nodes


def spec_id(*algorithms: tuple[int, int], signature: bytes = b"Spec ID Event03\0", vendor: bytes = b"") -> bytes:
    """Data of a crypto-agile log's first entry: for hashes and how long their digests are."""
    listed = b"".join(struct.pack("<HH", *each) for each in algorithms)
    return (
        signature + bytes(4) + b"\0\2\0\2" + struct.pack("<I", len(algorithms)) + listed + bytes([len(vendor)]) + vendor
    )


def first_entry(data: bytes, *, pcr: int = 0, event_type: int = EventType.EV_NO_ACTION) -> bytes:
    """A crypto-agile log's first entry, which has the older format."""
    return struct.pack("<II20xI", pcr, event_type, len(data)) + data


def agile_entry(each: Entry) -> bytes:
    """TCG_PCR_EVENT2."""
    digests = b"".join(struct.pack("<H", ALGORITHMS[bank]) + digest for bank, digest in each.digests.items())
    return (
        struct.pack("<III", each.pcr, each.type, len(each.digests))
        + digests
        + struct.pack("<I", len(each.data))
        + each.data
    )


def sha1_entry(each: Entry) -> bytes:
    """TCG_PCR_EVENT."""
    return struct.pack("<II20sI", each.pcr, each.type, each.digests.get("sha1", bytes(20)), len(each.data)) + each.data


def agile_log(*entries: Entry, banks: Sequence[str] = ("sha256",)) -> bytes:
    """A crypto-agile log with ``entries``."""
    sizes = [(ALGORITHMS[bank], 32 if bank.startswith("0x") else hashlib.new(bank).digest_size) for bank in banks]
    return first_entry(spec_id(*sizes)) + b"".join(map(agile_entry, entries))


def sha1_log(*entries: Entry) -> bytes:
    """A log in the older format."""
    return b"".join(map(sha1_entry, entries))


def made(*entries: Entry, banks: Sequence[str] = ("sha256",)) -> EventLog:
    """A crypto-agile log with ``entries``."""
    return parse_event_log(agile_log(*entries, banks=banks))


def locality_entry(locality: int, *, pcr: int = 0, banks: Sequence[str] = ("sha256",)) -> Entry:
    """The entry that says from where the TPM was started."""
    zeros = {bank: bytes(hashlib.new(bank).digest_size) for bank in banks}
    return Entry(0, pcr, EventType.EV_NO_ACTION, zeros, b"StartupLocality\0" + bytes([locality]))


def to_bytes(log: EventLog) -> bytes:
    """``log`` as firmware would have written it."""
    if not log.crypto_agile:
        return sha1_log(*log.entries)
    return first_entry(log.entries[0].data) + b"".join(map(agile_entry, log.entries[1:]))


def changed(log: EventLog, change: Callable[[list[Entry]], object]) -> EventLog:
    """``log`` after ``change`` did something to the list of its entries."""
    entries = list(log.entries)
    change(entries)
    return parse_event_log(to_bytes(dataclasses.replace(log, entries=tuple(entries))))


def with_data(each: Entry, data: bytes) -> Entry:
    """``each`` with other data, and digests of them: something else was measured."""
    return dataclasses.replace(
        each, data=data, digests={bank: hashlib.new(bank, data).digest() for bank in each.digests}
    )


def with_digest_of(each: Entry, measured: bytes) -> Entry:
    """``each`` with digests of something else, and the same data: another program of the same name."""
    return dataclasses.replace(each, digests={bank: hashlib.new(bank, measured).digest() for bank in each.digests})


def tpm2_eventlog(data: bytes, folder: Path) -> dict[str, dict[int, bytes]]:
    """The PCR values to which tpm2-tools say that the log leads, by bank and PCR."""
    path = folder / "oracle.log"
    path.write_bytes(data)
    output = subprocess.run(["tpm2_eventlog", str(path)], capture_output=True, text=True, check=True, timeout=60).stdout
    values: dict[str, dict[int, bytes]] = {}
    for line in output.partition("\npcrs:\n")[2].splitlines():
        if bank := re.fullmatch(r"  (sha\d+):", line):
            found = values[bank[1]] = {}
        elif value := re.fullmatch(r"    (\d+) *: 0x([0-9a-f]+)", line):
            found[int(value[1])] = bytes.fromhex(value[2])
    return values


def boot(tpm: SimulatedTpm, log: EventLog, *, bank: str = "sha256") -> None:
    """Restarts ``tpm``, and measures what ``log`` says."""
    tpm.restart()
    measurements = [f"{each.pcr}:{bank}={each.digests[bank].hex()}" for each in log.entries if each.extends]
    tpm.tool("tpm2_pcrextend", *measurements)


def values_of(log: EventLog, bank: str = "sha256") -> Mapping[int, bytes]:
    """The values to which ``log`` leads in ``bank``."""
    return replay(log, [bank])[bank]


def start_from(tpm: SimulatedTpm, locality: int, measured: bytes) -> None:
    """Starts ``tpm`` from a locality; from 4 after the hardware measured ``measured``, as Intel's and AMD's does."""
    port = int(tpm.tcti.rpartition("=")[2])
    control = ["swtpm_ioctl", "--tcp", f"127.0.0.1:{port + 1}"]
    steps = [["-i"], *([["-h", measured.decode()]] if locality == H_CRTM else []), ["-l", str(locality % H_CRTM)]]
    for step in steps:
        subprocess.run([*control, *step], check=True, capture_output=True, timeout=60)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:  # libtss2 would set the locality to 0
        raw.sendall(STARTUP_CLEAR)
        assert raw.recv(64)[6:] == bytes(4)


def keep_banks(tpm: SimulatedTpm, *banks: str) -> None:
    """Lets ``tpm`` keep no PCR banks but these, as an owner may switch them in the firmware's menu."""
    choice = [f"{bank}:{'all' if bank in banks else 'none'}" for bank in ("sha1", "sha256", "sha384", "sha512")]
    tpm.tool("tpm2_pcrallocate", "+".join(choice))
    tpm.tool("tpm2_shutdown", "-c")
    tpm.restart()
