"""After a process was killed, at whatever moment: what it left, and what of it counts. Pure.

The table says what may be; the TPM's list of its NV indices (one command) and the folder's files say what is. Removing
an index that nobody needs takes three commands; to look which of two files counts takes two, or three with a policy on
PCRs. There is at most one such index and one such file after one kill. Whether somebody put an old copy of the folder
back is looked at where an NV index is that should not be there, with three commands at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls_agent.storage.envelope import parse_file_name
from tpm_mtls_agent.storage.table import INLINE_PLACE, Entry, Table

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from tpm_mtls_agent.storage.slots import Shape

_TEMPORARY: Final = re.compile(r"\.(?:[0-9a-f]{64}\.[0-9]{1,20}\.sealed|table\.json|keys\.json)\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Findings:
    """What is there.

    Attributes:
        table: what holds, as far as it is clear.
        orphans: NV indices to be removed.
        unclear: entries whose NV index must be read, to know which of their places counts.
        lost: slots whose NV index is gone, and with it the secret.
        foreign: slots that somebody else uses; or the agent, and the table is an old copy that does not know it.
        suspicious: of these, slots of secrets in files: if the NV index there is the agent's own, it has a newer value.
    """

    table: Table
    orphans: tuple[Shape, ...]
    unclear: tuple[Entry, ...]
    lost: frozenset[int]
    foreign: frozenset[int]
    suspicious: frozenset[int]


def reconcile(table: Table, indices: AbstractSet[int], files: AbstractSet[str]) -> Findings:
    """What there is.

    1. A deletion that was begun is finished where the NV index is gone; where it is there, it was not begun.
    2. An NV index that was being made or removed is removed. One that is not there needs nothing.
    3. Where a value may be in one place only, because the other one's file is not there, it is there.
    4. NV indices that the table does not know are left alone.

    Args:
        table: as it was read.
        indices: slots whose NV index is defined.
        files: names of the files in the folder.
    """
    orphans = tuple(each for each in table.orphans if each.slot in indices)  # 2
    entries = [_settled(entry, files) for entry in table.entries if not _is_deleted(entry, indices)]  # 1
    in_nv = {entry.slot for entry in entries if entry.form == "nv"}
    known = in_nv | {each.slot for each in orphans}
    foreign = frozenset(indices) - known  # 4
    return Findings(
        table=msgspec.structs.replace(table, entries=tuple(entries), orphans=orphans),
        orphans=orphans,
        unclear=tuple(entry for entry in entries if len(entry.places) > 1 and entry.slot in indices),
        lost=frozenset(in_nv - indices),
        foreign=foreign,
        suspicious=foreign & {entry.slot for entry in entries},
    )


def strays(table: Table, files: AbstractSet[str]) -> frozenset[str]:
    """Of ``files``, those that no secret may have its value in, and those that were not written to their end.

    Only names that this agent gives (and `tpm_mtls.files.write_atomic`) are among them.
    """
    ours = {file for file in files if parse_file_name(file) or _TEMPORARY.fullmatch(file)}
    return frozenset(ours.difference(*(entry.files for entry in table.entries)))


def _is_deleted(entry: Entry, indices: AbstractSet[int]) -> bool:
    return entry.deleting and entry.slot not in indices


def _settled(entry: Entry, files: AbstractSet[str]) -> Entry:
    places = entry.places
    if len(places) > 1:
        there = {parsed for parsed in map(parse_file_name, files) if parsed}
        places = tuple(each for each in places if each == INLINE_PLACE or (entry.name, each) in there)  # 3
    return msgspec.structs.replace(entry, deleting=False, places=places or entry.places)
