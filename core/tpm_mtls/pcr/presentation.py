"""What ``tpm-mtls pcr`` says: for a person, and for a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpm_mtls import tables
from tpm_mtls.event_log import describe
from tpm_mtls.event_log.components import PCR_COMPONENTS, Component

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tpm_mtls.event_log import Change, Entry, EventLog
    from tpm_mtls.pcr.explain import Explanation


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """`tpm_mtls.tables.print_rows`, for values that a person looks at rather than copies: each may be broken."""
    tables.print_rows(titles, rows, empty="nothing to show", fold=titles)


def value_rows(values: Mapping[str, Mapping[int, bytes]]) -> list[tuple[str, int, str, str]]:
    """Rows for PCR ``values``: bank, number, what is measured into it, value."""
    return [(bank, pcr, component(pcr), value.hex()) for bank in values for pcr, value in sorted(values[bank].items())]


def value_facts(values: Mapping[str, Mapping[int, bytes]]) -> dict[str, dict[str, str]]:
    """PCR ``values`` for JSON."""
    return {bank: {str(pcr): value.hex() for pcr, value in sorted(found.items())} for bank, found in values.items()}


def entry_row(entry: Entry) -> tuple[int, int, str, str, str]:
    """A row for ``entry``: number, PCR, part of the boot, how much of the words was measured, words."""
    about = describe(entry)
    return entry.number, entry.pcr, about.component, about.measured, about.text


def entry_facts(entry: Entry | None) -> dict[str, Any] | None:
    """``entry`` for JSON."""
    if entry is None:
        return None
    about = describe(entry)
    return {
        "number": entry.number,
        "pcr": entry.pcr,
        "type": entry.type_name,
        "component": about.component,
        "text": about.text,
        "measured": about.measured,
        "digests": {bank: digest.hex() for bank, digest in entry.digests.items()},
    }


def log_facts(
    name: str, log: EventLog, entries: Sequence[Entry], values: Mapping[str, Mapping[int, bytes]]
) -> dict[str, Any]:
    """An event log for JSON: ``entries`` of it, and the PCR ``values`` to which it leads."""
    return {
        "log": name,
        "format": "crypto-agile" if log.crypto_agile else "sha1",
        "startup_locality": log.startup_locality,
        "entries": [entry_facts(entry) for entry in entries],
        "pcrs": value_facts(values),
    }


def explanation_facts(each: Explanation) -> dict[str, Any]:
    """Why a PCR differs, for JSON."""
    differs = each.differs
    return {
        "bank": differs.bank,
        "pcr": differs.pcr,
        "component": component(differs.pcr),
        "then": differs.then,
        "now": differs.now,
        "recorded": differs.recorded,
        "cause": each.cause,
        "text": str(each),
        "changes": [_change_facts(change) for change in each.changes],
        "measured": [entry_facts(entry) for entry in each.measured],
    }


def explanation_lines(each: Explanation) -> Iterator[str]:
    """Why a PCR differs, for a person."""
    differs = each.differs
    yield f"PCR {differs.pcr} ({differs.bank}), {component(differs.pcr)}, differs"
    yield f"  then  {differs.then}  ({differs.recorded})"
    yield f"  now   {differs.now or 'this TPM does not keep the bank'}"
    lines = [str(change) for change in each.changes] + [_entry_line(entry) for entry in each.measured]
    yield f"  {each}{':' if lines else ''}"
    for line in lines:
        yield f"    {line}"


def component(pcr: int) -> str:
    """What is measured into ``pcr``, in a word or two."""
    return PCR_COMPONENTS.get(pcr, Component.OTHER)


def _entry_line(entry: Entry) -> str:
    about = describe(entry)
    return f"{about.component}: {about.text}"


def _change_facts(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "pcr": change.pcr,
        "component": change.component,
        "text": str(change),
        "before": entry_facts(change.before),
        "after": entry_facts(change.after),
    }
