"""Reading an event log: the crypto-agile format of TPM 2.0 and the SHA-1 format of TPM 1.2. Strict, in linear time.

TCG PC Client Platform Firmware Profile 1.05 rev 23: 10.1 (header), 10.2.1 (TCG_PCR_EVENT, SHA-1), 10.2.2
(TCG_PCR_EVENT2), 10.4.5.1 (Specification ID Version event), 10.4.5.3 (Startup Locality event). TCG EFI Protocol
Specification, family 2.0, rev 00.13, 5 (the formats as UEFI hands them over).
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log.cursor import Cursor
from tpm_mtls.event_log.entries import HASHES, Entry, EventLog
from tpm_mtls.policy.document import PCRS

LOG_LIMIT: Final = 1024 * 1024
"""Bytes of an event log. Firmware reserves 64 KiB for it (EDK2's PcdTcgLogAreaMinLen), some 128; eight times as much is
for machines with many devices and long lists of revoked programs."""

_WHAT: Final = "event log"
_HEADER: Final = struct.Struct("<III")  # pcrIndex, eventType; digests.count
_SHA1_HEADER: Final = struct.Struct("<II")
_SHA1_SIZE: Final = 20
_DIGEST_LIMIT: Final = 64  # the longest hash of the registry
_ALGORITHMS_LIMIT: Final = 16  # TPM2_NUM_PCR_BANKS of libtss2
_SPEC_ID: Final = b"Spec ID Event03\0"
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
_LOCALITIES: Final = (0, 3, 4)  # 4: the hardware measured before TPM2_Startup (H-CRTM)


def parse_event_log(data: bytes) -> EventLog:
    """The event log ``data``, as the Linux kernel gives it (``binary_bios_measurements``).

    1. It has at most `LOG_LIMIT` bytes, at least one entry, and ends where its last entry does.
    2. If it begins with "Spec ID Event03", that names hashes with their right sizes, each once; one is known here.
    3. Each entry has exactly one digest for each of these hashes, as the standard says and the kernel demands.
    4. Entries that extend PCRs name one of 0 to 23.
    5. There is at most one startup locality, before the first measurement into PCR 0, and it is a possible one.

    Not verified: that any of it happened. EV_NO_ACTION is believed here, for without it neither format nor startup
    locality were known; a lie leads to other PCR values, which `mismatches` tells.

    Raises:
        EvidenceError: a step failed.
    """
    if len(data) > LOG_LIMIT:  # 1
        raise EvidenceError(f"an event log of more than {LOG_LIMIT} bytes", hint="this is not the file that was meant")
    cursor = Cursor(data, _WHAT)
    first = _sha1_entry(cursor, 0)
    entries = [first]
    sizes: dict[int, int] = {}
    crypto_agile = not first.extends and first.data.startswith(_SPEC_ID)
    if crypto_agile:
        sizes = _digest_sizes(first.data)  # 2
        entries = [Entry(0, first.pcr, first.type, {}, first.data)]  # its digest is of neither bank: zeros
    while cursor.left:
        number = len(entries)
        entries.append(_entry(cursor, number, sizes) if crypto_agile else _sha1_entry(cursor, number))
    banks = tuple(HASHES[each] for each in sizes if each in HASHES) if crypto_agile else ("sha1",)
    return EventLog(tuple(entries), banks, crypto_agile, _startup_locality(entries, cursor))


def _sha1_entry(cursor: Cursor, number: int) -> Entry:
    """TCG_PCR_EVENT, also called TCG_PCClientPCREvent."""
    pcr, event_type = cursor.unpack(_SHA1_HEADER)
    digests = {"sha1": cursor.take(_SHA1_SIZE)}
    return _checked(cursor, Entry(number, pcr, event_type, digests, cursor.take(cursor.number(4))))


def _entry(cursor: Cursor, number: int, sizes: dict[int, int]) -> Entry:
    """TCG_PCR_EVENT2."""
    pcr, event_type, count = cursor.unpack(_HEADER)
    if count != len(sizes):  # 3
        raise cursor.malformed(f"entry {number} has {count} digests, but the log is for {len(sizes)} hashes")
    digests: dict[str, bytes] = {}
    for _ in range(count):
        algorithm = cursor.number(2)
        name = _name(algorithm)
        if algorithm not in sizes or name in digests:
            raise cursor.malformed(f"entry {number} has a digest too many, of the hash {name}")
        digests[name] = cursor.take(sizes[algorithm])
    return _checked(cursor, Entry(number, pcr, event_type, digests, cursor.take(cursor.number(4))))


def _checked(cursor: Cursor, entry: Entry) -> Entry:
    if entry.extends and entry.pcr not in PCRS:  # 4
        raise cursor.malformed(f"entry {entry.number} is for PCR {entry.pcr}")
    return entry


def _digest_sizes(data: bytes) -> dict[int, int]:
    """The hashes of a crypto-agile log, and how long their digests are: TCG_EfiSpecIDEvent."""
    cursor = Cursor(data, "event log's Spec ID")
    cursor.take(len(_SPEC_ID) + 4 + 4)  # platformClass; version, errata and uintnSize, which change nothing here
    count = cursor.number(4)
    if not 0 < count <= _ALGORITHMS_LIMIT:
        raise cursor.malformed(f"it is for {count} hashes")
    sizes: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = cursor.number(2), cursor.number(2)
        right = hashlib.new(HASHES[algorithm], usedforsecurity=False).digest_size if algorithm in HASHES else size
        if algorithm in sizes or size != right or not 0 < size <= _DIGEST_LIMIT:
            raise cursor.malformed(f"the hash {_name(algorithm)} comes twice, or has no digests of {size} bytes")
        sizes[algorithm] = size
    if not sizes.keys() & HASHES.keys():
        raise cursor.malformed(f"it is for hashes that are not known here: {', '.join(map(_name, sizes))}")
    cursor.take(cursor.number(1))  # vendorInfo
    cursor.end()
    return sizes


def _startup_locality(entries: list[Entry], cursor: Cursor) -> int:
    found: int | None = None
    measured = False
    for entry in (each for each in entries if each.pcr == 0):
        measured |= entry.extends
        if entry.extends or not entry.data.startswith(_STARTUP_LOCALITY):
            continue
        locality = entry.data[len(_STARTUP_LOCALITY) :]
        if measured or found is not None or len(locality) != 1 or locality[0] not in _LOCALITIES:  # 5
            raise cursor.malformed(f"entry {entry.number} is no startup locality, a second one, or comes too late")
        found = locality[0]
    return found or 0


def _name(algorithm: int) -> str:
    return HASHES.get(algorithm, f"{algorithm:#06x}")
