"""What the storage has the TPM do: NV indices of ours, and sealed keys; with what each costs in commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tpm_mtls.errors import AuthorizationError, HandleNotFoundError, PemError, TpmMemoryError
from tpm_mtls.policy.document import PolicyAuthorize, each_assertion
from tpm_mtls.policy.files import find_signed_policies
from tpm_mtls_agent.storage.slots import FIRST_INDEX, index_of, shape_of, slot_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.structures.sealed import SealedObject
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_agent.storage.slots import Shape

_NO_ROOM = 0x14B  # TPM_RC_NV_SPACE


class TpmSecrets(Protocol):
    """What `OpenTpmSecrets` does; the storage is tested on a model of it, too, that ends at every step."""

    def slots(self) -> frozenset[int]:
        """Slots whose NV index is defined, by whomever."""

    def make(self, shape: Shape) -> bool:
        """Makes an NV index; false if the NV memory is full."""

    def write(self, shape: Shape, data: bytes, *, new: bool = False) -> None:
        """Writes a whole NV index; ``new`` if it never was."""

    def read(self, shape: Shape, policy: Sequence[Assertion]) -> bytes:
        """Reads a whole NV index."""

    def remove(self, shape: Shape) -> None:
        """Removes an NV index that was written."""

    def remove_orphan(self, shape: Shape) -> bool:
        """Removes an NV index that may not be there, or not be written; false if it is not ours, and stays."""

    def owned(self, slot: int) -> Shape | None:
        """The NV index in ``slot``, which the table does not know, if it is ours after all."""

    def seal(self, data: bytes, policy: Sequence[Assertion]) -> SealedObject:
        """Seals up to 128 bytes."""

    def unseal(self, sealed: SealedObject, policy: Sequence[Assertion]) -> bytes:
        """Gives them back."""


class OpenTpmSecrets:
    """The same, by an open TPM.

    A policy that does not hold is a PolicyRefusedError with the TPM's code; a TPM that was cleared or exchanged is a
    StorageRootKeyChangedError.
    """

    def __init__(self, tpm: Tpm, state_dir: Path, authorization: Secret) -> None:
        """``state_dir`` is where signed policies are installed; ``authorization`` is the NV indices' value."""
        self._tpm = tpm
        self._state_dir = state_dir
        self._authorization = authorization

    def slots(self) -> frozenset[int]:
        """One command for each 128 NV indices that the TPM has from the agent's first on."""
        slots = map(slot_of, self._tpm.nv.indices(FIRST_INDEX))
        return frozenset(slot for slot in slots if slot is not None)

    def make(self, shape: Shape) -> bool:
        """Two commands.

        Raises:
            HandleOccupiedError: something is there already; it stays.
        """
        try:
            self._tpm.nv_secrets.define(shape.public(), None if shape.policy else self._authorization)
        except TpmMemoryError as error:
            if error.rc != _NO_ROOM:
                raise
            return False
        return True

    def write(self, shape: Shape, data: bytes, *, new: bool = False) -> None:
        """Two commands, one of which wears the NV memory.

        Raises:
            HandleNotFoundError: it is not there.
            AuthorizationError: it is another index.
        """
        public = shape.public(written=not new)
        self._tpm.nv_secrets.write(public, data, authorization=self._value(shape))

    def read(self, shape: Shape, policy: Sequence[Assertion]) -> bytes:
        """Two commands; three with a policy on PCRs.

        Raises:
            as `write`, and PolicyRefusedError: the machine booted something else.
        """
        return self._tpm.nv_secrets.read(
            shape.public(), authorization=self._value(shape), policy=policy, signed_policies=self._signed(policy)
        )

    def remove(self, shape: Shape) -> None:
        """Two commands.

        Raises:
            as `write`.
        """
        self._tpm.nv_secrets.undefine(shape.public())

    def remove_orphan(self, shape: Shape) -> bool:
        """Three commands; one if it is not there, or not ours."""
        try:
            found = self._tpm.nv_secrets.inspect(shape.index)
        except HandleNotFoundError:
            return True
        except PemError:  # it counts, or has another nameAlg
            return False
        is_ours = found in {shape.public(), shape.public(written=False)}
        if is_ours:
            self._tpm.nv_secrets.undefine(found)
        return is_ours

    def owned(self, slot: int) -> Shape | None:
        """One command, and two where only the authorization value tells; with a policy the attributes have to do."""
        try:
            public = self._tpm.nv_secrets.inspect(index_of(slot))
            shape = shape_of(public)
            if shape is not None and public.written and not shape.policy:
                self._tpm.nv_secrets.read(public, 1, authorization=self._authorization)
        except (HandleNotFoundError, PemError, AuthorizationError):
            return None
        return shape

    def seal(self, data: bytes, policy: Sequence[Assertion]) -> SealedObject:
        """Two commands."""
        return self._tpm.sealing.seal(data, policy=policy)

    def unseal(self, sealed: SealedObject, policy: Sequence[Assertion]) -> bytes:
        """Four commands (Load, StartAuthSession, Unseal, FlushContext); five with a policy on PCRs.

        Raises:
            PolicyRefusedError: the machine booted something else.
            ForeignKeyError: another TPM sealed it; or it is damaged.
        """
        return self._tpm.sealing.unseal(sealed, policy=policy, signed_policies=self._signed(policy))

    def _value(self, shape: Shape) -> Secret | None:
        return None if shape.policy else self._authorization

    def _signed(self, policy: Sequence[Assertion]) -> Sequence[FoundPolicy]:
        """Looked for each time: one may be installed while the agent runs."""
        if not any(isinstance(each, PolicyAuthorize) for each in each_assertion(policy)):
            return ()
        found, _ = find_signed_policies([self._state_dir])
        return found
