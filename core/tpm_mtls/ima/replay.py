"""From a measurement list to a PCR value. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from tpm_mtls.ima.entries import IMA_PCR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.ima.entries import ImaEntry, ImaLog


class _Step(NamedTuple):
    value: bytes
    entries: int


def replay_ima(log: ImaLog, bank: str, *, pcr: int = IMA_PCR, padded: bool = False) -> bytes:
    """The value of ``pcr`` in ``bank`` after all entries of ``log``.

    Args:
        log: the list.
        bank: such as ``sha256``.
        pcr: its number.
        padded: see `ImaEntry.extended`.
    """
    *_, last = _steps(log, bank, pcr, padded=padded)
    return last.value


def entries_behind(log: ImaLog, bank: str, value: bytes, *, pcr: int = IMA_PCR) -> tuple[ImaEntry, ...] | None:
    """The entries at the beginning of ``log`` that lead to ``value``; none if no beginning does.

    Both ways in which Linux extends other banks than sha1 are tried, each for the whole list. Where ``value`` is that
    of a PCR that was never extended, no entries lead to it: an empty tuple.

    The caller must have ``value`` from a TPM, or from a quote whose signature was verified. The entries that follow in
    ``log``, and those for other PCRs among them, are not vouched for.

    Args:
        log: the list, read after the quote.
        bank: such as ``sha256``.
        value: of the PCR.
        pcr: its number.

    Returns:
        The entries for ``pcr``, in their order.
    """
    for padded in (False, True):
        for step in _steps(log, bank, pcr, padded=padded):
            if step.value == value:
                return tuple(entry for entry in log.entries[: step.entries] if entry.pcr == pcr)
    return None


def _steps(log: ImaLog, bank: str, pcr: int, *, padded: bool) -> Iterator[_Step]:
    """The values of ``pcr`` on the way, from the one before all entries, and after how many entries it has them."""
    value = bytes(hashlib.new(bank, usedforsecurity=False).digest_size)
    yield _Step(value, 0)
    for count, entry in enumerate(log.entries, start=1):
        if entry.pcr == pcr:
            value = hashlib.new(bank, value + entry.extended(bank, padded=padded), usedforsecurity=False).digest()
            yield _Step(value, count)
