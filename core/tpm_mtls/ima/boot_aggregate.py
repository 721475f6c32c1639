"""The first entry of a measurement list: a digest of the PCRs that the boot filled."""

from __future__ import annotations

import enum
import hashlib
import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpm_mtls.ima.entries import ImaLog

_NAME: Final = "boot_aggregate"
_LAST: Final = (9, 7)
"""Up to which PCR: with another hash than SHA-1, Linux since 2020 takes 8 and 9 (boot loader, command line), too."""


class BootAggregate(enum.Enum):
    """Whether the list began in the boot whose PCRs one has."""

    MATCHES = "matches"
    DIFFERS = "differs"
    """It began in another boot, or something extended one of PCRs 0 to 9 afterwards."""

    UNKNOWN = "unknown"
    """The list does not begin with it, or it is of a bank whose values one has not."""


def boot_aggregate(log: ImaLog, pcrs: Mapping[str, Mapping[int, bytes]]) -> BootAggregate:
    """Whether the first entry of ``log`` is the digest of PCRs 0 to 9, or 0 to 7, of the bank that it names.

    Linux, security/integrity/ima/ima_crypto.c: ima_calc_boot_aggregate_tfm. The caller must have verified that the
    entry is true (`tpm_mtls.ima.entries_behind`).

    Args:
        log: the list.
        pcrs: values from a TPM or a verified quote, by bank and number.
    """
    first = log.entries[0] if log.entries else None
    if first is None or first.path != _NAME or first.violation:
        return BootAggregate.UNKNOWN
    values = pcrs.get(first.algorithm, {})
    known = False
    for last in _LAST if first.algorithm != "sha1" else _LAST[1:]:
        if not values.keys() >= set(range(last + 1)):
            continue
        known = True
        aggregate = hashlib.new(first.algorithm, usedforsecurity=False)
        for pcr in range(last + 1):
            aggregate.update(values[pcr])
        if hmac.compare_digest(aggregate.digest(), first.digest):
            return BootAggregate.MATCHES
    return BootAggregate.DIFFERS if known else BootAggregate.UNKNOWN
