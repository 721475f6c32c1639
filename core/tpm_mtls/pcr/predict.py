"""The values that PCRs will have: after given measurements, or after a boot with another event log. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tpm_mtls.errors import UsageError
from tpm_mtls.event_log.replay import extend, replay
from tpm_mtls.files import read_capped
from tpm_mtls.policy.document import BANKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tpm_mtls.event_log import EventLog

FILE_LIMIT: Final = 512 * 1024 * 1024
"""Bytes of a file that is measured; a kernel image with an initial RAM disk inside has 50 to 200 MiB."""

_DIGEST: Final = re.compile(r"(sha1|sha256|sha384|sha512)=([0-9A-Fa-f]+)")
_FILE: Final = re.compile(r"([0-9]{1,5}):(.+)", re.DOTALL)
_DIGESTS: Final = re.compile(r"([0-9]{1,5}):(\S+)")


class Measurement(NamedTuple):
    """A measurement to come.

    Attributes:
        number: of the PCR that it is for, or of the entry that it stands in for.
        digests: what is measured, by bank.
    """

    number: int
    digests: Mapping[str, bytes]


class FileMeasurement(NamedTuple):
    """A file to be measured.

    Attributes:
        number: of the PCR that it is for, or of the entry that it stands in for.
        path: the file.
    """

    number: int
    path: Path


def parse_measurement(text: str) -> Measurement:
    """The measurement that ``text`` says, like tpm2_pcrextend's: ``7:sha256=HEX``, several banks joined with commas.

    Raises:
        UsageError: it says none.
    """
    match = _DIGESTS.fullmatch(text)
    found = [_DIGEST.fullmatch(part) for part in match[2].split(",")] if match else []
    digests = {each[1]: each[2] for each in found if each}
    if match is None or len(digests) != len(found) or any(len(digests[each]) != 2 * BANKS[each] for each in digests):
        raise UsageError(
            f"not a measurement: {text[:80]!r}", hint="like 7:sha256=HEX, with as many digits as the hash has"
        )
    return Measurement(int(match[1]), {bank: bytes.fromhex(digest) for bank, digest in digests.items()})


def parse_file(text: str) -> FileMeasurement:
    """The file that ``text`` says to be measured: ``4:FILE``.

    Raises:
        UsageError: it says none.
    """
    match = _FILE.fullmatch(text)
    if match is None:
        raise UsageError(f"not a number and a file: {text[:80]!r}", hint="like 4:vmlinuz")
    return FileMeasurement(int(match[1]), Path(match[2]))


def measure(each: FileMeasurement, banks: Iterable[str]) -> Measurement:
    """The measurement of a file's content for ``banks``, as tpm2_pcrevent makes it.

    EFI programs are measured otherwise, without their signatures: see `tpm_mtls.pcr.authenticode`.

    Raises:
        PemError, StorageError: the file is oversized, or cannot be read.
    """
    data = read_capped(each.path, limit=FILE_LIMIT)
    return Measurement(each.number, {bank: hashlib.new(bank, data, usedforsecurity=False).digest() for bank in banks})


def check_no_order(measurements: Iterable[Measurement], files: Iterable[FileMeasurement]) -> None:
    """Checks that no PCR gets both: which of them comes first would not be known.

    Raises:
        UsageError: one does.
    """
    both = {each.number for each in measurements} & {each.number for each in files}
    if both:
        raise UsageError(
            f"PCR {min(both)} is extended with digests and with files: which comes first is not known",
            hint="give all of them as --extend, in their order; a file's digest: sha256sum FILE",
        )


def extended(
    values: Mapping[str, Mapping[int, bytes]], measurements: Iterable[Measurement]
) -> dict[str, dict[int, bytes]]:
    """``values``, by bank and PCR, after ``measurements`` in their order.

    Raises:
        UsageError: a measurement is for no PCR in ``values``, or lacks the digest for one of its banks.
    """
    after = {bank: dict(found) for bank, found in values.items()}
    for pcr, digests in measurements:
        banks = [bank for bank in after if pcr in after[bank]]
        if not banks or set(digests) - set(after):
            raise UsageError(
                f"PCR {pcr} ({', '.join(digests)}) is extended, but is not one of those to predict",
                hint="name them all with --pcrs, such as sha256:0,2,4,7",
            )
        for bank in banks:
            if bank not in digests:
                raise UsageError(
                    f"PCR {pcr} is to be predicted for the bank {bank}, too, but its digest is not given",
                    hint=f"give all banks: {pcr}:{','.join(f'{each}=HEX' for each in banks)}",
                )
            after[bank][pcr] = extend(bank, after[bank][pcr], digests[bank])
    return after


def replaced(log: EventLog, measurements: Iterable[Measurement]) -> EventLog:
    """``log`` with other digests in some entries, as it will be after an update. It has only the banks that are given.

    Raises:
        UsageError: there is no such entry, or it extends no PCR.
    """
    entries, banks = list(log.entries), log.banks
    for number, digests in measurements:
        if number >= len(entries) or not entries[number].extends:
            raise UsageError(
                f"the event log has no entry {number} that extends a PCR",
                hint="see which entries there are: tpm-mtls pcr log",
            )
        entries[number] = dataclasses.replace(entries[number], digests=digests)
        banks = tuple(bank for bank in banks if bank in digests)
    return dataclasses.replace(log, entries=tuple(entries), banks=banks)


def select(log: EventLog, selection: Mapping[str, Iterable[int]]) -> dict[str, dict[int, bytes]]:
    """The values to which ``log`` leads of the PCRs in ``selection``.

    Raises:
        EvidenceError: it cannot be replayed for a bank.
        UsageError: it has no entries for one of the PCRs. What it will have then is not the boot's affair.
    """
    values = replay(log, selection)
    missing = {pcr for bank, pcrs in selection.items() for pcr in pcrs if pcr not in values[bank]}
    if missing:
        raise UsageError(
            f"the event log has no entries for PCR {min(missing)}",
            hint=f"it has them for {', '.join(map(str, log.pcrs))}: name them with --pcrs",
        )
    return {bank: {pcr: values[bank][pcr] for pcr in pcrs} for bank, pcrs in selection.items()}
