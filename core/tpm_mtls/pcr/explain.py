"""Why a PCR has another value than once: which entries of the event log explain it. Pure.

The log counts only as far as it leads to the value that the TPM has; an earlier log, as far as it leads to the value
that was recorded. Where it does not, the explanation says so.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.event_log import Change, ChangeKind, compare, describe, values_on_the_way

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tpm_mtls.event_log import Entry, EventLog
    from tpm_mtls.policy.check import PcrDiffers


class Cause(enum.StrEnum):
    """How much of a difference is known."""

    CHANGES = "changes"
    """Both logs lead to their values: the changes between them are the whole difference."""

    ADDED = "added"
    """The recorded value is one on the way to the present one: the changes were added to it."""

    AFTER_BOOT = "after-boot"
    """The log leads to the recorded value: the boot was the same, and something was measured afterwards."""

    ONE_SIDED = "one-sided"
    """The log leads to the present value, but nothing tells what led to the recorded one."""

    UNEXPLAINED = "unexplained"
    """The log does not lead to the present value."""

    NO_LOG = "no-log"
    """There is no log, or none for the bank."""


_TEXTS = {
    Cause.CHANGES: "these differences between the two event logs explain it",
    Cause.ADDED: "these measurements came on top of the recorded ones",
    Cause.AFTER_BOOT: "the machine booted what was recorded; afterwards something was measured that is in no log",
    Cause.ONE_SIDED: "no event log leads to the recorded value; these measurements led to the present one",
    Cause.UNEXPLAINED: "the event log does not lead to the present value: something was measured after the boot, "
    "or it is another boot's",
    Cause.NO_LOG: "no event log to explain it",
}


@dataclass(frozen=True)
class Explanation:
    """A PCR that differs, and why.

    Attributes:
        differs: which PCR, and how.
        cause: how much is known.
        changes: the differences between the logs in that PCR.
        measured: what was measured into it, where nothing tells what is different.
    """

    differs: PcrDiffers
    cause: Cause
    changes: tuple[Change, ...] = ()
    measured: tuple[Entry, ...] = ()

    def __str__(self) -> str:
        """What is known, in one line."""
        return _TEXTS[self.cause]


def explain(
    differences: Iterable[PcrDiffers], log: EventLog | None, before: EventLog | None
) -> tuple[Explanation, ...]:
    """Why each of ``differences`` is.

    Args:
        differences: PCRs whose value is another one than was recorded.
        log: the event log of the present boot; none if there is none.
        before: the event log of the recorded one, if somebody kept it.

    Raises:
        EvidenceError: the logs have no bank in common.
    """
    changes = compare(before, log) if before is not None and log is not None else ()
    return tuple(_explain(each, log, before, [one for one in changes if one.pcr == each.pcr]) for each in differences)


def _explain(
    differs: PcrDiffers, log: EventLog | None, before: EventLog | None, changes: Sequence[Change]
) -> Explanation:
    if log is None or differs.now is None or differs.bank not in log.banks:
        return Explanation(differs, Cause.NO_LOG)
    then, now = bytes.fromhex(differs.then), bytes.fromhex(differs.now)
    values = values_on_the_way(log, differs.bank, differs.pcr)
    entries = log.measured_into(differs.pcr)
    if values[-1] == then:
        return Explanation(differs, Cause.AFTER_BOOT)
    if values[-1] != now:
        return Explanation(differs, Cause.UNEXPLAINED, tuple(changes), () if before else entries)
    if before is not None and _leads_to(before, differs, then):
        return Explanation(differs, Cause.CHANGES, tuple(changes))
    if then in values:
        return Explanation(differs, Cause.ADDED, tuple(map(_added, entries[values.index(then) :])))
    return Explanation(differs, Cause.ONE_SIDED, measured=entries)


def _leads_to(log: EventLog, differs: PcrDiffers, value: bytes) -> bool:
    return differs.bank in log.banks and values_on_the_way(log, differs.bank, differs.pcr)[-1] == value


def _added(entry: Entry) -> Change:
    about = describe(entry)
    return Change(ChangeKind.APPEARED, entry.pcr, about.component, None, entry, about.text)
