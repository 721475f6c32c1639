"""From an event log to PCR values: what a TPM's PCRs are after just these measurements. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from tpm_mtls.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tpm_mtls.event_log.entries import EventLog


class Mismatch(NamedTuple):
    """A PCR whose value is another one than the log leads to.

    Attributes:
        bank: ``sha256``, …
        pcr: its number.
        replayed: to which value the log leads.
        value: which it has.
    """

    bank: str
    pcr: int
    replayed: bytes
    value: bytes


def extend(bank: str, value: bytes, digest: bytes) -> bytes:
    """The value of a PCR of ``bank`` with the value ``value`` after TPM2_PCR_Extend with ``digest``.

    TPM 2.0 Library part 1 rev 1.59, 17.3.
    """
    return hashlib.new(bank, value + digest, usedforsecurity=False).digest()


def replay(log: EventLog, banks: Iterable[str] | None = None) -> dict[str, dict[int, bytes]]:
    """The values of all PCRs that ``log`` has entries for, by bank and number.

    Args:
        log: the event log.
        banks: for which banks; all that it has digests for by default.

    Raises:
        EvidenceError: ``log`` cannot be replayed for one of ``banks``.
    """
    values: dict[str, dict[int, bytes]] = {}
    for bank in log.banks if banks is None else banks:
        _check_bank(log, bank)
        found = values[bank] = {}
        for entry in log.entries:
            if entry.extends:
                before = found[entry.pcr] if entry.pcr in found else first_value(log, bank, entry.pcr)
                found[entry.pcr] = extend(bank, before, entry.digests[bank])
    return values


def first_value(log: EventLog, bank: str, pcr: int) -> bytes:
    """The value of ``pcr`` before all entries: zeros; in PCR 0, the last byte is the startup locality.

    TCG PC Client Platform Firmware Profile 1.05 rev 23, 10.4.5.3. (The PCRs that a dynamic launch resets, 17 to 22,
    are zeros then, and else in no boot's log.)

    Raises:
        EvidenceError: ``log`` cannot be replayed for ``bank``.
    """
    _check_bank(log, bank)
    size = hashlib.new(bank, usedforsecurity=False).digest_size
    return (log.startup_locality if pcr == 0 else 0).to_bytes(size, "big")


def values_on_the_way(log: EventLog, bank: str, pcr: int) -> list[bytes]:
    """The first value of ``pcr``, and its values after each of the entries that extended it.

    Raises:
        EvidenceError: ``log`` cannot be replayed for ``bank``.
    """
    values = [first_value(log, bank, pcr)]
    for entry in log.measured_into(pcr):
        values.append(extend(bank, values[-1], entry.digests[bank]))
    return values


def mismatches(log: EventLog, values: Mapping[str, Mapping[int, bytes]]) -> tuple[Mismatch, ...]:
    """Which of ``values`` ``log`` does not lead to; none says that ``log`` is what was measured into these PCRs.

    The caller must have ``values`` from a TPM or from a quote whose signature was verified, and must ask for every PCR
    that it is going to believe the log about: PCRs without entries are expected to have their first value. PCRs that
    the operating system goes on to extend (10 by IMA, 11 to 15 by systemd) are not the boot log's.

    Args:
        log: the event log.
        values: by bank and PCR.

    Raises:
        EvidenceError: ``log`` cannot be replayed for a bank in ``values``.
    """
    replayed = replay(log, values)
    return tuple(
        Mismatch(bank, pcr, expected, value)
        for bank, wanted in values.items()
        for pcr, value in wanted.items()
        if (expected := replayed[bank].get(pcr) or first_value(log, bank, pcr)) != value
    )


def _check_bank(log: EventLog, bank: str) -> None:
    if bank not in log.banks:
        raise EvidenceError(
            f"the event log has no digests for the PCR bank {bank[:20]}", hint=f"it has them for {', '.join(log.banks)}"
        )
