"""The secrets, by name: `tpm_mtls_agent.store.SecretStore`.

A value is in one of three places:

- in its NV index, up to 740 bytes;
- in a file whose key is in its NV index, if it is larger;
- in a file with a key that TPM2_Create sealed: where the NV memory is full, the NV index is worn, or it was made for
  another policy, which an index keeps for good. The next time the value is set it goes back into NV, if it can.

What it costs, in commands to the TPM: get 2, with a policy on PCRs 3 (a file with a sealed key: 4 and 5, as its key has
to be loaded before and flushed after); set 2 in place, 4 where an index is made or given up, one of them a write of NV
memory at most; delete 2, or none.

What is done in which order makes every kill harmless. One step is the one that counts: the write of the NV index, or
that of the table. What is needed afterwards is there before it, and what is not needed any more is removed after it.
Nothing of a value is kept in memory.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from tpm_mtls.errors import (
    HandleNotFoundError,
    HandleOccupiedError,
    IdentityError,
    NoSuchSecretError,
    StorageFullError,
    TpmMemoryError,
    TpmMtlsError,
    TpmRefusedError,
)
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls_agent.envelope import Place
from tpm_mtls_agent.reconcile import reconcile, strays
from tpm_mtls_agent.record import INLINE, KEY, VALUE_LIMIT, Record, decode_record, encode_record, record_size
from tpm_mtls_agent.slots import SLOTS, Shape, choose_slot, index_of, size_class
from tpm_mtls_agent.table import INLINE_PLACE, Entry, Statistics, Table, statistics_of
from tpm_mtls_agent.value_files import ValueFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls_agent.names import DeviceKeys
    from tpm_mtls_agent.secrets_folder import SecretsFolder
    from tpm_mtls_agent.tpm_secrets import TpmSecrets

_NO_ROOM: Final = 0x14B  # TPM_RC_NV_SPACE
_TPM_LAYER: Final = 0x10000  # codes below are the TPM's own: it did not do what was asked


class SealedStore:
    """The store over an open TPM and an open folder; `tpm_mtls_agent.storage.open_store` makes one."""

    def __init__(
        self, tpm: TpmSecrets, folder: SecretsFolder, keys: DeviceKeys, policy: Sequence[Assertion] = ()
    ) -> None:
        """``policy`` is what values that are set from now on are bound to.

        Raises:
            IdentityError: the table is damaged or missing.
        """
        self._tpm = tpm
        self._folder = folder
        self._files = ValueFiles(folder, tpm)
        self._keys = keys
        self._policy = tuple(policy)
        self._digest = policy_digest(policy).hex() if policy else ""
        self._table = self._saved = folder.load_table()
        self._lost: set[int] = set()
        self._foreign: set[int] = set()
        self._outdated: dict[int, Shape] = {}

    def reconcile(self) -> None:
        """Cleans up what a killed process left: see `tpm_mtls_agent.reconcile`, also for what it costs."""
        files = self._folder.files()
        found = reconcile(self._table, self._tpm.slots(), files)
        self._lost, self._foreign = set(found.lost), set(found.foreign)
        self._outdated = {slot: shape for slot in found.suspicious if (shape := self._tpm.owned(slot)) is not None}
        self._table = found.table
        for orphan in found.orphans:
            with suppress(TpmRefusedError):  # then the next start tries again
                self._remove_orphan(orphan)
        for entry in found.unclear:
            with suppress(TpmRefusedError, IdentityError):  # its policy does not hold: both files stay
                self._settle(entry, self._read(entry))
        self.close()
        for file in strays(self._table, files):
            self._folder.remove(file)

    def close(self) -> None:
        """Writes what became clear since the table was written: then the next start need not ask."""
        if self._table != self._saved:
            self._save(self._table)

    def set(self, name: bytes, value: bytes) -> int:
        """See `tpm_mtls_agent.store.SecretStore`.

        Raises:
            TpmMemoryError: there are 256 secrets already.
        """
        hashed = self._keys.name(name)
        entry = self._table.find(hashed)
        if entry is None:
            return index_of(self._add(hashed, value).slot)
        if not self._overwrite(entry, hashed, value):
            self._replace(entry, hashed, value)
        return index_of(entry.slot)

    def get(self, name: bytes) -> bytes:
        """See `tpm_mtls_agent.store.SecretStore`.

        Raises:
            IdentityError: its NV index, or its file, is gone or damaged, or an older one.
        """
        hashed = self._keys.name(name)
        entry = self._find(hashed)
        if entry.form == "nv":
            record = self._read(entry)
            self._settle(entry, record)
            if record.kind == INLINE:
                return record.content
            return self._files.read(Place(index_of(entry.slot), record.generation, hashed), record.content)
        if entry.slot in self._outdated:
            raise IdentityError(
                f"the secret's file is older than its value in NV {index_of(entry.slot):#010x}",
                hint="an old copy of the agent's folder was put back; set the secret again, or restore the newer copy",
            )
        place = Place(index_of(entry.slot), entry.generation, hashed)
        return self._files.read_sealed(place, self._table.policies.get(entry.policy, ()))

    def delete(self, name: bytes) -> None:
        """See `tpm_mtls_agent.store.SecretStore`. After an error of the TPM's the secret is still there."""
        entry = self._find(self._keys.name(name))
        before = self._table
        if entry.form == "nv":
            self._save(before.put(replace(entry, deleting=True)))  # that counts once the index is gone
            try:
                self._tpm.remove(entry.shape)
            except (HandleNotFoundError, HandleOccupiedError) as error:
                self._lose(entry, error)
            except TpmRefusedError as error:
                self._table = before if error.rc < _TPM_LAYER else self._table
                raise
            self._lost.discard(entry.slot)
            self._table = before.drop(entry)
        self._save(before.drop(entry))
        self._files.remove(entry)

    def label(self, name: bytes) -> str:
        """See `tpm_mtls_agent.store.SecretStore`."""
        return self._keys.label(name)

    def statistics(self) -> Statistics:
        """How many secrets there are, and how often which NV index was written; sends no command."""
        return statistics_of(self._table, lost=frozenset(self._lost), foreign=frozenset(self._foreign))

    def _find(self, hashed: bytes) -> Entry:
        entry = self._table.find(hashed)
        if entry is None:
            raise NoSuchSecretError("there is no secret of that name", hint="names are case-sensitive; set it first")
        return entry

    def _settle(self, entry: Entry, record: Record) -> None:
        """What the NV index has tells which place of ``entry`` counts; the table on the disk need not know it yet.

        One that the table does not know at all means that the table is an old copy: then its files stay.
        """
        settled = replace(entry, places=(_place(record),))
        if settled != entry and _place(record) in entry.places:
            self._table = self._table.put(settled)
            self._files.remove(entry, but=settled)

    def _read(self, entry: Entry) -> Record:
        try:
            data = self._tpm.read(entry.shape, self._table.policies.get(entry.policy, ()))
        except (HandleNotFoundError, HandleOccupiedError) as error:
            self._lose(entry, error)
            raise IdentityError(
                f"the secret is lost: somebody removed its NV index {index_of(entry.slot):#010x} from the TPM",
                hint="set it again, or del it",
            ) from error
        return decode_record(self._keys, index_of(entry.slot), bytes.fromhex(entry.name), data)

    def _lose(self, entry: Entry, error: HandleNotFoundError | HandleOccupiedError) -> None:
        """The NV index of ``entry`` is gone; maybe another one is in its place, which is not ours."""
        self._lost.add(entry.slot)
        if isinstance(error, HandleOccupiedError):
            self._foreign.add(entry.slot)

    def _add(self, hashed: bytes, value: bytes) -> Entry:
        while True:
            slot = choose_slot(hashed, self._table.taken() | self._foreign, self._table.worn())
            if slot is None:
                raise TpmMemoryError(
                    f"there are {SLOTS} secrets, or NV indices of others in their places: no name can be added",
                    hint="del one that is not needed any more",
                    rc=_NO_ROOM,
                )
            with suppress(HandleOccupiedError):  # somebody made one since the agent looked: the next slot, then
                return self._into_nv(hashed, slot, value) or self._into_file(hashed, slot, value)

    def _overwrite(self, entry: Entry, hashed: bytes, value: bytes) -> bool:
        """Writes the NV index that is there; false if that cannot be, and nothing was changed."""
        if (
            entry.form == "file"
            or entry.policy != self._digest
            or entry.slot in self._lost
            or entry.slot in self._table.worn()
        ):
            return False
        record = self._prepare(entry.shape, hashed, value)
        places = tuple(sorted({*entry.places, _place(record)}))
        begun = replace(entry, generation=record.generation, places=places, deleting=False)
        try:
            self._save(self._table.advance().count(entry.slot).put(begun))
            self._write(entry.shape, hashed, record)
        except (StorageFullError, TpmRefusedError, HandleOccupiedError) as error:
            if isinstance(error, TpmRefusedError) and error.rc >= _TPM_LAYER:
                raise  # the answer did not arrive: who knows which value counts now
            self._table = self._table.put(replace(entry, generation=record.generation))
            self._files.remove(begun, but=entry)
            if not isinstance(error, HandleNotFoundError | HandleOccupiedError):
                raise
            self._lose(entry, error)
            return False
        self._settle(begun, record)
        return True

    def _replace(self, entry: Entry, hashed: bytes, value: bytes) -> None:
        """Another NV index, or none any more: `_overwrite` could not do it."""
        has_index = entry.form == "nv" and entry.slot not in self._lost
        changed = None
        if entry.slot in self._outdated:
            self._foreign.discard(entry.slot)
            self._remove_orphan(self._outdated[entry.slot])  # the newer value that it has is given up
            del self._outdated[entry.slot]
        if not has_index and self._is_free(entry.slot):
            with suppress(HandleOccupiedError):
                changed = self._into_nv(hashed, entry.slot, value)
        changed = changed or self._into_file(hashed, entry.slot, value, orphan=entry.shape if has_index else None)
        if has_index:
            with suppress(TpmMtlsError):  # the new value counts already; the next start removes the old one
                self._remove(entry.shape)
        self._lost.discard(entry.slot)
        self._files.remove(entry, but=changed)

    def _is_free(self, slot: int) -> bool:
        """Whether an NV index can be made in ``slot``; removes one that could not be removed before."""
        if slot in self._table.worn():
            return False
        orphan = self._table.orphan(slot)
        if orphan is not None:
            with suppress(TpmRefusedError):
                self._remove_orphan(orphan)
        return slot not in self._foreign and self._table.orphan(slot) is None

    def _into_nv(self, hashed: bytes, slot: int, value: bytes) -> Entry | None:
        """Makes an NV index for ``value`` and writes it; none if there is no room, or the slot is worn."""
        size = size_class(record_size(len(value)))
        if size is None or slot in self._table.worn():
            return None
        before, shape = self._table.advance(), Shape(slot, size, self._digest)
        record = self._prepare(shape, hashed, value)
        entry = Entry(
            name=hashed.hex(),
            slot=slot,
            form="nv",
            generation=record.generation,
            size=size,
            policy=self._digest,
            places=(_place(record),),
        )
        try:
            self._save(before.count(slot).expect(shape))
            if self._tpm.make(shape):
                self._write(shape, hashed, record, new=True)
                self._save(self._table.put(entry, self._policy))
                return entry
        except HandleOccupiedError:
            self._foreign.add(slot)
            self._save(before)
            self._files.remove(entry)
            raise
        except (StorageFullError, TpmRefusedError):
            with suppress(TpmMtlsError):  # the first error is the one to tell; the next start removes it, then
                self._remove_orphan(shape)
            self._files.remove(entry)
            raise
        self._table = before
        self._files.remove(entry)
        return None

    def _into_file(self, hashed: bytes, slot: int, value: bytes, *, orphan: Shape | None = None) -> Entry:
        """Writes ``value`` to a file with a sealed key; ``orphan`` is an NV index that is not needed any more then."""
        table = self._table.advance()
        entry = Entry(name=hashed.hex(), slot=slot, form="file", generation=table.generation, policy=self._digest)
        self._files.write_sealed(Place(index_of(slot), table.generation, hashed), value, self._policy)
        table = table.put(entry, self._policy)
        try:
            self._save(table.expect(orphan) if orphan else table)
        except StorageFullError:
            self._files.remove(entry)
            raise
        return entry

    def _prepare(self, shape: Shape, hashed: bytes, value: bytes) -> Record:
        """The record for ``value`` in an NV index; where it does not fit, its file is written, and the key recorded."""
        generation = self._table.generation + 1
        if record_size(len(value)) <= shape.size and len(value) <= VALUE_LIMIT:
            return Record(INLINE, generation, value)
        return Record(KEY, generation, self._files.write(Place(shape.index, generation, hashed), value))

    def _write(self, shape: Shape, hashed: bytes, record: Record, *, new: bool = False) -> None:
        self._tpm.write(shape, encode_record(self._keys, shape.index, hashed, record, shape.size), new=new)

    def _remove(self, shape: Shape) -> None:
        with suppress(HandleNotFoundError):
            self._tpm.remove(shape)
        self._table = self._table.settle(shape.slot)

    def _remove_orphan(self, shape: Shape) -> None:
        if not self._tpm.remove_orphan(shape):
            self._foreign.add(shape.slot)
        self._table = self._table.settle(shape.slot)

    def _save(self, table: Table) -> None:
        self._folder.save(table)
        self._table = self._saved = table


def _place(record: Record) -> int:
    return INLINE_PLACE if record.kind == INLINE else record.generation
