"""Why a machine does not boot what it should: which PCRs, and which entries of the event log. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation.quote_checks import BANK
from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log import parse_event_log
from tpm_mtls.pcr.explain import Cause, explain
from tpm_mtls.pcr.presentation import component, explanation_lines
from tpm_mtls_server.attestation.words import listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tpm_mtls.event_log import EventLog
    from tpm_mtls.pcr.explain import Explanation
    from tpm_mtls.policy.check import PcrDiffers
    from tpm_mtls_server.attestation.boot_state import BootState

LINES_LIMIT: Final = 64 * 1024
"""Characters of all lines together: an answer may have four times as much."""

LINE_LIMIT: Final = 2000
"""Characters of a line."""

_ENTRIES_LIMIT: Final = 200  # for one PCR; of the recorded logs the longest has 26

_MOST_TELLING: Final = list(Cause)
"""What is known for certain comes first."""


def explain_differences(
    differs: Sequence[PcrDiffers], log: EventLog | None, baseline: BootState | None
) -> tuple[Explanation, ...]:
    """Why each of ``differs`` is, those first that something is known about.

    Args:
        differs: the PCRs that have other values than they should.
        log: the event log of the present boot, which passed check 8; none if there is none.
        baseline: what the device once booted, with the event log of that boot, if it was kept.
    """
    found = explain(differs, log, _earlier_log(log, baseline))
    return tuple(sorted(found, key=lambda each: (_MOST_TELLING.index(each.cause), each.differs.pcr)))


def lines(explanations: Sequence[Explanation]) -> tuple[str, ...]:
    """The explanations for people, a line for each thing; not too many, and none too long."""
    return listed((line[:LINE_LIMIT] for each in explanations for line in _lines(each)), limit=LINES_LIMIT)


def components(explanations: Sequence[Explanation]) -> tuple[str, ...]:
    """The parts of the boot that differ, each once: as the changed entries say, or else by the PCRs."""
    found: dict[str, None] = {}
    for each in explanations:
        by_entries = [str(change.component) for change in each.changes] if each.cause is not Cause.UNEXPLAINED else []
        found |= dict.fromkeys(by_entries or [component(each.differs.pcr)])
    return tuple(found)


def _lines(each: Explanation) -> Iterator[str]:
    every = list(explanation_lines(each))
    yield from every[:_ENTRIES_LIMIT]
    if len(every) > _ENTRIES_LIMIT:
        yield f"    … and {len(every) - _ENTRIES_LIMIT} more"


def _earlier_log(log: EventLog | None, baseline: BootState | None) -> EventLog | None:
    """The baseline's event log, if it can be compared with ``log``."""
    if log is None or baseline is None or baseline.event_log is None:
        return None
    try:
        earlier = parse_event_log(baseline.event_log)
    except EvidenceError:  # it was kept by an earlier version that read it otherwise: nothing hangs on it
        return None
    return earlier if BANK in earlier.banks else None
