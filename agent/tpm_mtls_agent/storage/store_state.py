"""What the store knows while it is open: the table, and where the TPM contradicts it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from tpm_mtls.errors import HandleNotFoundError, HandleOccupiedError, IdentityError, NoSuchSecretError, TpmRefusedError
from tpm_mtls_agent.storage.reconcile import reconcile, strays
from tpm_mtls_agent.storage.record import Record, decode_record, encode_record
from tpm_mtls_agent.storage.slots import SIZES, index_of
from tpm_mtls_agent.storage.table import Statistics, Table, place_of, statistics_of
from tpm_mtls_agent.storage.value_files import ValueFiles

if TYPE_CHECKING:
    from tpm_mtls_agent.storage.names import DeviceKeys
    from tpm_mtls_agent.storage.secrets_folder import SecretsFolder
    from tpm_mtls_agent.storage.slots import Shape
    from tpm_mtls_agent.storage.table import Entry
    from tpm_mtls_agent.storage.tpm_secrets import TpmSecrets


ANY_SIZE: Final = SIZES[-1] + 1
"""More than any NV index of ours has."""


def no_such_secret() -> NoSuchSecretError:
    """The error for a name that nobody has; it does not repeat it."""
    return NoSuchSecretError("there is no secret of that name", hint="names are case-sensitive; set it first")


class StoreState:
    """An open store's state.

    Attributes:
        tpm: the TPM.
        keys: the device keys.
        files: the files of large values.
        table: what holds now; the one on the disk may know less, but nothing else.
        lost: slots of secrets whose NV index is gone.
        foreign: slots that somebody else uses.
        no_room_for: bytes of an NV index for which there was no room lately, and for more.
        outdated: NV indices of ours with a newer value than the file of the secret that the table knows in their slot.
    """

    def __init__(self, tpm: TpmSecrets, folder: SecretsFolder, keys: DeviceKeys) -> None:
        """The state that the table tells.

        Raises:
            IdentityError: the table is damaged or missing.
        """
        self.tpm = tpm
        self.keys = keys
        self.files = ValueFiles(folder, tpm)
        self.table = self._saved = folder.load_table()
        self.lost: set[int] = set()
        self.foreign: set[int] = set()
        self.outdated: dict[int, Shape] = {}
        self.no_room_for = ANY_SIZE
        self._folder = folder

    def reconcile(self) -> None:
        """Cleans up what a killed process left: see `tpm_mtls_agent.storage.reconcile`, also for what it costs."""
        files = self._folder.files()
        found = reconcile(self.table, self.tpm.slots(), files)
        self.lost, self.foreign = set(found.lost), set(found.foreign)
        self.outdated = {slot: shape for slot in found.suspicious if (shape := self.tpm.owned(slot)) is not None}
        self.table = found.table
        for orphan in found.orphans:
            with suppress(TpmRefusedError):  # then the next start tries again
                self.remove_orphan(orphan)
        for entry in found.unclear:
            with suppress(TpmRefusedError, IdentityError):  # its policy does not hold: both files stay
                self.settle(entry, self.read(entry))
        self.close()
        for file in strays(self.table, files):
            self._folder.remove(file)

    def save(self, table: Table) -> None:
        """``table`` holds from now on, on the disk first."""
        self._folder.save(table)
        self.table = self._saved = table

    def close(self) -> None:
        """Writes what became clear since the table was written: then the next start need not ask."""
        if self.table != self._saved:
            self.save(self.table)

    def statistics(self) -> Statistics:
        """The numbers."""
        return statistics_of(self.table, lost=frozenset(self.lost), foreign=frozenset(self.foreign))

    def read(self, entry: Entry) -> Record:
        """What the NV index of ``entry`` has.

        Raises:
            IdentityError: it is gone, exchanged or damaged.
            NoSuchSecretError: it is gone because the secret was being deleted.
            PolicyRefusedError: its policy does not hold.
        """
        try:
            data = self.tpm.read(entry.shape, self.table.policy_of(entry))
        except (HandleNotFoundError, HandleOccupiedError) as error:
            if entry.deleting:  # the TPM had done it, and its answer got lost
                self.table = self.table.drop(entry)
                self.files.remove(entry)
                raise no_such_secret() from error
            self.lose(entry, error)
            raise IdentityError(
                f"the secret is lost: somebody removed its NV index {index_of(entry.slot):#010x} from the TPM",
                hint="set it again, or del it",
            ) from error
        return decode_record(self.keys, index_of(entry.slot), bytes.fromhex(entry.name), data)

    def write(self, shape: Shape, name: bytes, record: Record, *, new: bool = False) -> None:
        """Writes ``record`` of the secret with the keyed hash ``name`` to an NV index, which may be ``new``."""
        self.tpm.write(shape, encode_record(self.keys, shape.index, name, record, shape.size), new=new)

    def settle(self, entry: Entry, record: Record) -> None:
        """What the NV index has tells which place of ``entry`` counts; the table on the disk need not know it yet.

        One that the table does not know at all means that the table is an old copy: then its files stay.
        """
        place = place_of(record)
        settled = replace(entry, places=(place,))
        if settled != entry and place in entry.places:
            self.table = self.table.put(settled)
            self.files.remove(entry, but=settled)

    def lose(self, entry: Entry, error: HandleNotFoundError | HandleOccupiedError) -> None:
        """The NV index of ``entry`` is gone; maybe another one is in its place, which is not ours."""
        self.lost.add(entry.slot)
        if isinstance(error, HandleOccupiedError):
            self.foreign.add(entry.slot)

    def remove(self, shape: Shape) -> None:
        """Removes an NV index that was written and is not needed any more."""
        with suppress(HandleNotFoundError):
            self.tpm.remove(shape)
        self.no_room_for = ANY_SIZE
        self.table = self.table.settle(shape.slot)

    def remove_orphan(self, shape: Shape) -> None:
        """As `remove`, for one that may not be there, or not be written, or be somebody else's and stay."""
        if not self.tpm.remove_orphan(shape):
            self.foreign.add(shape.slot)
        self.no_room_for = ANY_SIZE
        self.table = self.table.settle(shape.slot)
