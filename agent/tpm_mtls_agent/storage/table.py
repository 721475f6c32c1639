"""``table.json``: which secrets there are, by their keyed hashes, and where their values are. Pure.

What changes in the TPM or in files is written here before it is begun, so that a process that was killed leaves nothing
of which the next one does not know (`tpm_mtls_agent.storage.reconcile`). Only this file says in which form a value is;
which of the values in one NV index counts, the index itself says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from tpm_mtls.errors import IdentityError
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import Assertion, check_assertions
from tpm_mtls_agent.storage.envelope import file_name
from tpm_mtls_agent.storage.record import INLINE
from tpm_mtls_agent.storage.slots import SIZES, SLOTS, WRITES_LIMIT, PolicyDigest, Shape, Slot, index_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls_agent.storage.record import Record

FORMAT: Final = 1
LIMIT: Final = 1024 * 1024
"""Bytes: 256 entries of 300, and as many policies of up to 2 KiB."""

INLINE_PLACE: Final = 0
"""Among `Entry.places`: the NV index has the value itself. Generations of files begin with 1."""

KeyedHash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Generation = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A secret.

    Attributes:
        name: the keyed hash of its name.
        slot: its slot, for good.
        form: ``nv``: its NV index has the value or the key of its file; ``file``: a file with a sealed key has it.
        generation: of its newest value, even one whose writing was interrupted; see `Table`.
        size: bytes of its NV index; 0 in the form ``file``.
        policy: digest of the policy that it is bound to; empty for none.
        places: where its value may be, in the form ``nv``: `INLINE_PLACE`, or a generation whose file has it. More than
            one only while it changes, or after that was interrupted; the NV index tells.
        deleting: its removal was begun; it is gone when its NV index is.
    """

    name: KeyedHash
    slot: Slot
    form: Literal["nv", "file"]
    generation: Generation
    size: int = 0
    policy: PolicyDigest = ""
    places: tuple[Generation, ...] = ()
    deleting: bool = False

    @property
    def shape(self) -> Shape:
        """Its NV index, in the form ``nv``."""
        return Shape(self.slot, self.size, self.policy)

    @property
    def files(self) -> frozenset[str]:
        """The files that may have its value."""
        generations = (self.generation,) if self.form == "file" else self.places
        return frozenset(file_name(self.name, each) for each in generations if each != INLINE_PLACE)


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it; the methods return changed copies.

    Attributes:
        format: version of this structure.
        generation: the newest value's; each new value of whatever secret has the next one.
        entries: the secrets.
        orphans: NV indices that nobody needs: those that are being made or removed. At most one for each slot.
        writes: how often the NV index of a slot was written, whoever had it.
        policies: by their digests, those of the entries.
    """

    format: int = FORMAT
    generation: Generation = 0
    entries: tuple[Entry, ...] = ()
    orphans: tuple[Shape, ...] = ()
    writes: dict[Slot, int] = {}
    policies: dict[PolicyDigest, tuple[Assertion, ...]] = {}

    def find(self, name: bytes) -> Entry | None:
        """The secret whose name has the keyed hash ``name``."""
        wanted = name.hex()
        return next((entry for entry in self.entries if entry.name == wanted), None)

    def put(self, entry: Entry, policy: Sequence[Assertion] = ()) -> Table:
        """With ``entry``, bound to ``policy``, in place of what has its name; its NV index is no orphan any more."""
        others = tuple(each for each in self.entries if each.name != entry.name)
        orphans = tuple(each for each in self.orphans if entry.form == "file" or each.slot != entry.slot)
        policies = self.policies | ({entry.policy: tuple(policy)} if policy else {})
        return msgspec.structs.replace(self, entries=(*others, entry), orphans=orphans, policies=policies)

    def drop(self, entry: Entry) -> Table:
        """Without ``entry``."""
        return msgspec.structs.replace(self, entries=tuple(each for each in self.entries if each.name != entry.name))

    def expect(self, orphan: Shape) -> Table:
        """With ``orphan`` among the NV indices that nobody needs."""
        others = self.settle(orphan.slot).orphans
        return msgspec.structs.replace(self, orphans=(*others, orphan))

    def settle(self, slot: int) -> Table:
        """``slot`` has no NV index that nobody needs."""
        return msgspec.structs.replace(self, orphans=tuple(each for each in self.orphans if each.slot != slot))

    def advance(self) -> Table:
        """With the next generation begun."""
        return msgspec.structs.replace(self, generation=self.generation + 1)

    def count(self, slot: int) -> Table:
        """One more write of the NV index of ``slot``."""
        return msgspec.structs.replace(self, writes=self.writes | {slot: self.writes.get(slot, 0) + 1})

    def policy_of(self, entry: Entry) -> tuple[Assertion, ...]:
        """What ``entry`` is bound to; empty for nothing."""
        return self.policies.get(entry.policy, ())

    def orphan(self, slot: int) -> Shape | None:
        """The NV index that nobody needs in ``slot``."""
        return next((each for each in self.orphans if each.slot == slot), None)

    def taken(self) -> frozenset[int]:
        """Slots that a new secret cannot have."""
        return frozenset(each.slot for each in self.entries) | {each.slot for each in self.orphans}

    def worn(self) -> frozenset[int]:
        """Slots whose NV index was written too often."""
        return frozenset(slot for slot, count in self.writes.items() if count >= WRITES_LIMIT)


@dataclass(frozen=True)
class Statistics:
    """What the store has, in numbers.

    Attributes:
        secrets: names.
        in_nv: those whose value, or whose file's key, is in an NV index.
        in_files: those whose value is in a file with a sealed key.
        free_slots: names that can be added.
        nv_writes: how often each NV index was written, by index.
        worn: NV indices that are written no more.
        orphans: NV indices that could not be removed yet.
        lost: NV indices of secrets that somebody removed from the TPM; none unless the store is open.
        foreign: NV indices in the agent's range that are not the agent's; none unless the store is open.
    """

    secrets: int
    in_nv: int
    in_files: int
    free_slots: int
    nv_writes: dict[int, int]
    worn: tuple[int, ...]
    orphans: tuple[int, ...]
    lost: tuple[int, ...] = ()
    foreign: tuple[int, ...] = ()


def place_of(record: Record) -> int:
    """Which of `Entry.places` it is that the NV index has ``record``."""
    return INLINE_PLACE if record.kind == INLINE else record.generation


def encode_table(table: Table) -> bytes:
    """The file; policies that no entry has are left out."""
    needed = {entry.policy for entry in table.entries}
    policies = {digest: policy for digest, policy in table.policies.items() if digest in needed}
    return msgspec.json.encode(msgspec.structs.replace(table, policies=policies)) + b"\n"


def check_table(table: Table) -> Table:
    """Returns ``table``, as the file holds it.

    1. No name and no slot is there twice; NV indices have a size of ours.
    2. The policy of each entry is there, and leads to its digest.

    Raises:
        IdentityError, PolicyError: a check failed.
    """
    names = {entry.name for entry in table.entries}
    slots = {entry.slot for entry in table.entries}
    orphans = {each.slot for each in table.orphans}
    sizes = {entry.size for entry in table.entries if entry.form == "nv"} | {each.size for each in table.orphans}
    if not len(names) == len(slots) == len(table.entries) or len(orphans) != len(table.orphans) or sizes - {*SIZES}:
        raise IdentityError("it contradicts itself", hint="restore it")  # 1
    for digest in {entry.policy for entry in table.entries} - {""}:
        policy = table.policies.get(digest, ())
        check_assertions(policy, "a policy in it")
        if policy_digest(policy).hex() != digest:
            raise IdentityError("a policy in it is not the one that it is said to be", hint="restore it")  # 2
    return table


def statistics_of(
    table: Table, *, lost: frozenset[int] = frozenset(), foreign: frozenset[int] = frozenset()
) -> Statistics:
    """The numbers of ``table``; ``lost`` and ``foreign`` are slots."""
    in_nv = sum(entry.form == "nv" for entry in table.entries)
    return Statistics(
        secrets=len(table.entries),
        in_nv=in_nv,
        in_files=len(table.entries) - in_nv,
        free_slots=SLOTS - len(table.taken() | foreign),
        nv_writes={index_of(slot): count for slot, count in sorted(table.writes.items())},
        worn=_indices(table.worn()),
        orphans=_indices(frozenset(each.slot for each in table.orphans)),
        lost=_indices(lost),
        foreign=_indices(foreign),
    )


def _indices(slots: frozenset[int]) -> tuple[int, ...]:
    return tuple(map(index_of, sorted(slots)))
