"""Setting a value: where it goes, and in which order, so that every kill leaves the old one or the new one.

One step is the one that counts: the write of the NV index where a value is overwritten in place, else that of the
table. What is needed afterwards is there before it, and what is not needed any more is removed after it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from tpm_mtls.errors import (
    HandleNotFoundError,
    HandleOccupiedError,
    StorageFullError,
    TpmMemoryError,
    TpmMtlsError,
    TpmRefusedError,
)
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls_agent.storage.envelope import Place
from tpm_mtls_agent.storage.record import INLINE, KEY, VALUE_LIMIT, Record, record_size
from tpm_mtls_agent.storage.slots import SLOTS, Shape, choose_slot, index_of, size_class
from tpm_mtls_agent.storage.table import Entry, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls_agent.storage.store_state import StoreState

_NO_ROOM: Final = 0x14B  # TPM_RC_NV_SPACE
_TPM_LAYER: Final = 0x10000


def may_be_done(error: Exception) -> bool:
    """Whether the TPM may have done what ``error`` says it did not: the code is none of its own, it did not arrive."""
    return isinstance(error, TpmRefusedError) and error.rc >= _TPM_LAYER


class ValueWriter:
    """Sets values of the store with ``state``, bound to ``policy``."""

    def __init__(self, state: StoreState, policy: Sequence[Assertion]) -> None:
        self._state = state
        self._policy = tuple(policy)
        self._digest = policy_digest(policy).hex() if policy else ""

    def set(self, name: bytes, value: bytes) -> int:
        """Keeps ``value`` for the keyed hash ``name``; returns the slot.

        Raises:
            TpmMemoryError: there are 256 secrets already.
        """
        entry = self._state.table.find(name)
        if entry is None:
            return self._add(name, value).slot
        if not self._overwrite(entry, name, value):
            self._replace(entry, name, value)
        return entry.slot

    def _add(self, name: bytes, value: bytes) -> Entry:
        while True:
            table = self._state.table
            slot = choose_slot(name, table.taken() | self._state.foreign, table.worn())
            if slot is None:
                raise TpmMemoryError(
                    f"there are {SLOTS} secrets, or NV indices of others in their places: no name can be added",
                    hint="del one that is not needed any more",
                    rc=_NO_ROOM,
                )
            with suppress(HandleOccupiedError):  # somebody made one since the agent looked: the next slot, then
                return self._into_nv(name, slot, value) or self._into_file(name, slot, value)

    def _overwrite(self, entry: Entry, name: bytes, value: bytes) -> bool:
        """Writes the NV index that is there; false if that cannot be, and nothing was changed."""
        state = self._state
        same_policy = entry.form == "nv" and entry.policy == self._digest
        if not same_policy or entry.slot in state.lost or entry.slot in state.table.worn():
            return False
        record = self._prepare(entry.shape, name, value)
        places = tuple(sorted({*entry.places, place_of(record)}))
        begun = replace(entry, generation=record.generation, places=places, deleting=False)
        try:
            state.save(state.table.advance().count(entry.slot).put(begun))
            state.write(entry.shape, name, record)
        except (StorageFullError, TpmRefusedError, HandleOccupiedError) as error:
            if may_be_done(error):
                raise
            state.table = state.table.put(replace(entry, generation=record.generation))
            state.files.remove(begun, but=entry)
            if not isinstance(error, HandleNotFoundError | HandleOccupiedError):
                raise
            state.lose(entry, error)
            return False
        state.settle(begun, record)
        return True

    def _replace(self, entry: Entry, name: bytes, value: bytes) -> None:
        """Another NV index, or none any more: `_overwrite` could not do it."""
        state, slot = self._state, entry.slot
        has_index = entry.form == "nv" and slot not in state.lost
        changed = None
        if slot in state.outdated:
            state.foreign.discard(slot)
            state.remove_orphan(state.outdated[slot])  # the newer value that it has is given up
            del state.outdated[slot]
        if not has_index and self._is_free(slot):
            with suppress(HandleOccupiedError):
                changed = self._into_nv(name, slot, value)
        changed = changed or self._into_file(name, slot, value, orphan=entry.shape if has_index else None)
        if has_index:
            with suppress(TpmMtlsError):  # the new value counts already; the next start removes the old one
                state.remove(entry.shape)
        state.lost.discard(slot)
        state.files.remove(entry, but=changed)

    def _is_free(self, slot: int) -> bool:
        """Whether an NV index can be made in ``slot``; removes one that could not be removed before."""
        orphan = self._state.table.orphan(slot)
        if orphan is not None:
            with suppress(TpmRefusedError):
                self._state.remove_orphan(orphan)
        return slot not in self._state.foreign and self._state.table.orphan(slot) is None

    def _into_nv(self, name: bytes, slot: int, value: bytes) -> Entry | None:
        """Makes an NV index for ``value`` and writes it; none if there is no room, or the slot is worn."""
        state, size = self._state, size_class(record_size(len(value)))
        if size is None or size >= state.no_room_for or slot in state.table.worn():
            return None
        before, shape = state.table.advance(), Shape(slot, size, self._digest)
        record = self._prepare(shape, name, value)
        entry = Entry(
            name=name.hex(),
            slot=slot,
            form="nv",
            generation=record.generation,
            size=size,
            policy=self._digest,
            places=(place_of(record),),
        )
        try:
            state.save(before.count(slot).expect(shape))
            if state.tpm.make(shape):
                state.write(shape, name, record, new=True)
                state.save(state.table.put(entry, self._policy))
                return entry
        except HandleOccupiedError:
            state.foreign.add(slot)
            state.save(before)
            state.files.remove(entry)
            raise
        except (StorageFullError, TpmRefusedError):
            with suppress(TpmMtlsError):  # the first error is the one to tell; the next start removes it, then
                state.remove_orphan(shape)
            state.files.remove(entry)
            raise
        state.table, state.no_room_for = before, size
        state.files.remove(entry)
        return None

    def _into_file(self, name: bytes, slot: int, value: bytes, *, orphan: Shape | None = None) -> Entry:
        """Writes ``value`` to a file with a sealed key; ``orphan`` is an NV index that is not needed any more then."""
        state, table = self._state, self._state.table.advance()
        entry = Entry(name=name.hex(), slot=slot, form="file", generation=table.generation, policy=self._digest)
        state.files.write_sealed(Place(index_of(slot), table.generation, name), value, self._policy)
        table = table.put(entry, self._policy)
        try:
            state.save(table.expect(orphan) if orphan else table)
        except StorageFullError:
            state.files.remove(entry)
            raise
        return entry

    def _prepare(self, shape: Shape, name: bytes, value: bytes) -> Record:
        """The record for ``value`` in an NV index; where it does not fit, its file is written, and the key recorded."""
        generation = self._state.table.generation + 1
        if len(value) <= VALUE_LIMIT and record_size(len(value)) <= shape.size:
            return Record(INLINE, generation, value)
        return Record(KEY, generation, self._state.files.write(Place(shape.index, generation, name), value))
