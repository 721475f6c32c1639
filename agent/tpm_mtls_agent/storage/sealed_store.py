"""The secrets, by name: `tpm_mtls_agent.storage.store.SecretStore`.

A value is in one of three places:

- in its NV index, up to 740 bytes;
- in a file whose key is in its NV index, if it is larger;
- in a file with a key that TPM2_Create sealed: where the NV memory is full, the NV index is worn, or it was made for
  another policy, which an index keeps for good. The next time the value is set it goes back into NV, if it can.

What it costs, in commands to the TPM: get 2, with a policy on PCRs 3 (a file with a sealed key: 4 and 5, as its key has
to be loaded before and flushed after); set 2 in place, 4 where an index is made or given up, one of them a write of NV
memory at most; delete 2, or none. That the NV memory is full costs three once, and is believed until an index of ours
is removed, or the next start.

Nothing of a value is kept in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tpm_mtls.errors import (
    HandleNotFoundError,
    HandleOccupiedError,
    IdentityError,
    TpmRefusedError,
)
from tpm_mtls_agent.storage.envelope import Place
from tpm_mtls_agent.storage.record import INLINE
from tpm_mtls_agent.storage.slots import index_of
from tpm_mtls_agent.storage.store_state import ANY_SIZE, StoreState, no_such_secret
from tpm_mtls_agent.storage.value_writer import ValueWriter, may_be_done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls_agent.storage.names import DeviceKeys
    from tpm_mtls_agent.storage.secrets_folder import SecretsFolder
    from tpm_mtls_agent.storage.table import Entry, Statistics
    from tpm_mtls_agent.storage.tpm_secrets import TpmSecrets


class SealedStore:
    """The store over an open TPM and an open folder; `tpm_mtls_agent.storage.opening.open_store` makes one."""

    def __init__(
        self, tpm: TpmSecrets, folder: SecretsFolder, keys: DeviceKeys, policy: Sequence[Assertion] = ()
    ) -> None:
        """``policy`` is what values that are set from now on are bound to.

        Raises:
            IdentityError: the table is damaged or missing.
        """
        self._state = StoreState(tpm, folder, keys)
        self._writer = ValueWriter(self._state, policy)
        self._keys = keys

    def reconcile(self) -> None:
        """Cleans up what a killed process left: see `tpm_mtls_agent.storage.reconcile`, also for what it costs."""
        self._state.reconcile()

    def close(self) -> None:
        """Spares the next start to ask the TPM what this process knows."""
        self._state.close()

    def set(self, name: bytes, value: bytes) -> int:
        """See `tpm_mtls_agent.storage.store.SecretStore`.

        Raises:
            TpmMemoryError: there are 256 secrets already.
        """
        return index_of(self._writer.set(self._keys.name(name), value))

    def get(self, name: bytes) -> bytes:
        """See `tpm_mtls_agent.storage.store.SecretStore`.

        Raises:
            IdentityError: its NV index, or its file, is gone or damaged, or an older one.
        """
        hashed = self._keys.name(name)
        entry = self._find(hashed)
        state, index = self._state, index_of(entry.slot)
        if entry.form == "nv":
            record = state.read(entry)
            state.settle(entry, record)
            if record.kind == INLINE:
                return record.content
            return state.files.read(Place(index, record.generation, hashed), record.content)
        if entry.slot in state.outdated:
            raise IdentityError(
                f"the secret's file is older than its value in NV {index:#010x}",
                hint="an old copy of the agent's folder was put back; set the secret again, or restore the newer copy",
            )
        return state.files.read_sealed(Place(index, entry.generation, hashed), state.table.policy_of(entry))

    def delete(self, name: bytes) -> None:
        """See `tpm_mtls_agent.storage.store.SecretStore`. After an error of the TPM's the secret is still there."""
        entry = self._find(self._keys.name(name))
        state, before = self._state, self._state.table
        if entry.form == "nv":
            state.save(before.put(replace(entry, deleting=True)))  # that counts once the index is gone
            try:
                state.tpm.remove(entry.shape)
                state.no_room_for = ANY_SIZE
            except (HandleNotFoundError, HandleOccupiedError) as error:
                state.lose(entry, error)
            except TpmRefusedError as error:
                if not may_be_done(error):
                    state.table = before
                raise
            state.lost.discard(entry.slot)
            state.table = before.drop(entry)
        state.save(before.drop(entry))
        state.files.remove(entry)

    def label(self, name: bytes) -> str:
        """See `tpm_mtls_agent.storage.store.SecretStore`."""
        return self._keys.label(name)

    def statistics(self) -> Statistics:
        """How many secrets there are, and how often which NV index was written; sends no command."""
        return self._state.statistics()

    def _find(self, hashed: bytes) -> Entry:
        entry = self._state.table.find(hashed)
        if entry is None:
            raise no_such_secret()
        return entry
