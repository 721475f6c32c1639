"""What differs between two event logs: by PCR and digest alone, then put into words. Pure, in n log n time."""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log.components import Component
from tpm_mtls.event_log.signatures import in_words, signatures
from tpm_mtls.event_log.words import describe, secure_boot_list

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from tpm_mtls.event_log.entries import Entry, EventLog
    from tpm_mtls.event_log.words import Description

_DIGITS = 12  # of a digest: enough to tell two apart


class ChangeKind(enum.StrEnum):
    """What became of an entry."""

    APPEARED = "appeared"
    VANISHED = "vanished"
    CHANGED = "changed"
    MOVED = "moved"


@dataclass(frozen=True)
class Change:
    """A difference between two event logs. ``str()`` is the difference in words.

    Attributes:
        kind: what became of it.
        pcr: the PCR that therefore has another value.
        component: the part of the boot that it belongs to, as far as the logs say so.
        before: the entry in the earlier log; none for one that appeared.
        after: the entry in the later log; none for one that vanished. Both are none where the startup locality changed.
        text: what the entry is about and how it changed, without kind and component.
    """

    kind: ChangeKind
    pcr: int
    component: Component
    before: Entry | None
    after: Entry | None
    text: str

    def __str__(self) -> str:
        """In words."""
        return f"{self.component} {self.kind}: {self.text}"


def compare(before: EventLog, after: EventLog) -> tuple[Change, ...]:
    """The differences between two event logs, by PCR.

    Two entries are the same if they have the same digests in all banks that both logs have; types and data do not
    count. Which of the others is another version of which is a guess from their words. Entries that extend no PCR are
    left out: anybody can write them.

    Not verified: that the logs are true. See `tpm_mtls.event_log.mismatches`.

    Raises:
        EvidenceError: the logs have no bank in common.
    """
    banks = [bank for bank in after.banks if bank in before.banks]
    if not banks:
        raise EvidenceError(
            "the two event logs have no PCR bank in common",
            hint=f"one has {', '.join(before.banks)}, the other {', '.join(after.banks)}",
        )
    changes = list(_locality(before, after))
    old, new = _by_pcr(before), _by_pcr(after)
    for pcr in sorted(old.keys() | new.keys()):
        found = _differences(old[pcr], new[pcr], lambda entry: tuple(entry.digests[bank] for bank in banks))
        changes += sorted(found, key=_place)
    return tuple(changes)


def _locality(before: EventLog, after: EventLog) -> Iterator[Change]:
    if before.startup_locality != after.startup_locality:
        text = f"the TPM was started from locality {after.startup_locality} instead of {before.startup_locality}"
        yield Change(ChangeKind.CHANGED, 0, Component.FIRMWARE, None, None, text)


def _by_pcr(log: EventLog) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = defaultdict(list)
    for entry in log.entries:
        if entry.extends:
            found[entry.pcr].append(entry)
    return found


def _place(change: Change) -> int:
    entry = change.after or change.before
    return entry.number if entry is not None else 0


def _differences(old: Sequence[Entry], new: Sequence[Entry], key: Callable[[Entry], Hashable]) -> Iterator[Change]:
    same, vanished, appeared = _pair(old, new, key)
    for before, after in _out_of_order(same):
        about = describe(after)
        yield Change(ChangeKind.MOVED, after.pcr, about.component, before, after, about.text)
    words = {id(entry): describe(entry) for entry in (*vanished, *appeared)}
    about_same, vanished, appeared = _pair(vanished, appeared, lambda entry: words[id(entry)].subject)
    same_part, vanished, appeared = _pair(vanished, appeared, lambda entry: _part(entry, words[id(entry)]))
    for before, after in (*about_same, *same_part):
        text = _difference(before, after, words[id(before)], words[id(after)])
        yield Change(ChangeKind.CHANGED, after.pcr, words[id(after)].component, before, after, text)
    for entry in vanished:
        yield Change(ChangeKind.VANISHED, entry.pcr, words[id(entry)].component, entry, None, words[id(entry)].text)
    for entry in appeared:
        yield Change(ChangeKind.APPEARED, entry.pcr, words[id(entry)].component, None, entry, words[id(entry)].text)


def _part(entry: Entry, about: Description) -> Hashable:
    """A kernel is another version of the one before it; two steps in the course of a boot have nothing in common."""
    loose = about.component in {Component.BOOT_PROCESS, Component.OTHER, Component.BOOT_COMMANDS}
    return (about.component, entry.type, about.subject if loose else None)


def _pair(
    old: Sequence[Entry], new: Sequence[Entry], key: Callable[[Entry], Hashable]
) -> tuple[list[tuple[Entry, Entry]], list[Entry], list[Entry]]:
    """Entries with the same key, the first with the first; and what is left of ``old`` and ``new``."""
    waiting: dict[Hashable, deque[Entry]] = defaultdict(deque)
    for entry in old:
        waiting[key(entry)].append(entry)
    pairs, left = [], []
    for entry in new:
        candidates = waiting[key(entry)]
        if candidates:
            pairs.append((candidates.popleft(), entry))
        else:
            left.append(entry)
    paired = {before.number for before, _ in pairs}
    return pairs, [entry for entry in old if entry.number not in paired], left


def _out_of_order(pairs: Sequence[tuple[Entry, Entry]]) -> list[tuple[Entry, Entry]]:
    """The fewest of ``pairs`` without which the order is the same: all but a longest increasing subsequence."""
    tails: list[int] = []  # for each length: the smallest number with which so long a subsequence ends
    ends: list[int] = []  # and its position
    previous: list[int] = []
    for position, (before, _) in enumerate(pairs):
        length = bisect_left(tails, before.number)
        tails[length : length + 1] = [before.number]
        ends[length : length + 1] = [position]
        previous.append(ends[length - 1] if length else -1)
    kept = set()
    position = ends[-1] if ends else -1
    while position >= 0:
        kept.add(position)
        position = previous[position]
    return [pair for position, pair in enumerate(pairs) if position not in kept]


def _difference(before: Entry, after: Entry, old: Description, new: Description) -> str:
    lists = _list_difference(before, after)
    if lists:
        return lists
    if old.text != new.text:
        return f"{old.text} → {new.text}"
    common = [bank for bank in after.digests if bank in before.digests]
    bank = "sha256" if "sha256" in common else common[-1]
    digests = [entry.digests[bank].hex()[:_DIGITS] for entry in (before, after)]
    return f"{new.text} ({bank} {digests[0]}… → {digests[1]}…)"


def _list_difference(before: Entry, after: Entry) -> str | None:
    old, new = secure_boot_list(before), secure_boot_list(after)
    if old is None or new is None:
        return None
    removed, added = signatures(old.content), signatures(new.content)
    if removed is None or added is None or removed == added:
        return None
    words = [f"variable {new.name}"]
    words += [f"added {in_words(added - removed)}"] if added - removed else []
    words += [f"removed {in_words(removed - added)}"] if removed - added else []
    return "; ".join(words)
