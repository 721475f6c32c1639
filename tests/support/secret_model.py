"""A model of what the agent's storage stands on, which a test can end at any step: NV indices, sealed keys, files.

It is no TPM: it answers at the storage's own seam (`tpm_mtls_agent.storage.tpm_secrets.TpmSecrets`), in memory, so that
property tests can cut the power at every step of thousands of histories. The same is done with a real one, by fewer
histories, in ``tests/agent/storage/test_interrupted.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.errors import (
    HandleNotFoundError,
    HandleOccupiedError,
    IdentityError,
    StorageError,
    StorageFullError,
    TpmRefusedError,
)
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.structures import parse_public_area
from tpm_mtls.structures.sealed import SealedObject
from tpm_mtls.tpm.templates import sealed_template
from tpm_mtls_agent.storage.names import DeviceKeys
from tpm_mtls_agent.storage.sealed_store import SealedStore
from tpm_mtls_agent.storage.slots import SIZES
from tpm_mtls_agent.storage.table import Table, check_table, encode_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls_agent.storage.slots import Shape

_SEALED_PUBLIC = parse_public_area(sealed_template(with_authorization=False))


class PowerCutError(BaseException):
    """The process is gone: no handler of its errors runs."""


class World:
    """What outlives a process.

    Attributes:
        indices: the NV memory, by slot: shape, and data (none before the first write).
        files: the folder.
        room: bytes of NV memory left.
        disk_full: no file can be written.
        writes: writes of NV indices, by slot.
        step: how many steps were made.
        fails_at: the step that fails; none for none.
        done: whether that step is done all the same.
        tpm_error: how a step of the TPM's fails.
        disk_error: how a step of the disk's fails; one of these is never done.
    """

    def __init__(self) -> None:
        self.keys = DeviceKeys.unpack(bytes(range(64)))  # the same slots each time
        self.indices: dict[int, tuple[Shape, bytes | None]] = {}
        self.files: dict[str, bytes] = {}
        self.sealed: dict[bytes, tuple[bytes, str]] = {}
        self.satisfied: set[str] = {""}
        self.room = 4096
        self.disk_full = False
        self.writes: dict[int, int] = {}
        self.step = 0
        self.fails_at: int | None = None
        self.done = False
        self.tpm_error: BaseException = PowerCutError()
        self.disk_error: BaseException = PowerCutError()
        self.files["table.json"] = encode_table(Table())

    def store(self, policy: Sequence[Assertion] = ()) -> SealedStore:
        """What a new process opens."""
        store = SealedStore(ModelTpm(self), ModelFolder(self), self.keys, policy)  # type: ignore[arg-type] - a folder's double
        store.reconcile()
        return store

    def begins(self, *, disk: bool = False) -> BaseException | None:
        """A step: what is to be raised right after it."""
        self.step += 1
        if self.step != self.fails_at:
            return None
        error = self.disk_error if disk else self.tpm_error
        if not self.done or isinstance(error, StorageError):
            raise error
        return error

    def table(self) -> Table:
        """The table on the disk."""
        return check_table(msgspec.json.decode(self.files["table.json"], type=Table))


def refusal(rc: int = 0x922) -> TpmRefusedError:
    """The TPM does not do it: TPM_RC_RETRY, unless ``rc`` says another reason."""
    return TpmRefusedError("cannot do that", hint="try again", rc=rc)


def full_disk() -> StorageFullError:
    """There is no room for the file."""
    return StorageFullError("full", hint="none", path="")


class ModelTpm:
    """`tpm_mtls_agent.storage.tpm_secrets.TpmSecrets` on a `World`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def slots(self) -> frozenset[int]:
        return frozenset(self._world.indices)

    def make(self, shape: Shape) -> bool:
        world = self._world
        cut = world.begins()
        if shape.slot in world.indices:
            raise HandleOccupiedError("occupied", hint="none", handle=shape.index)
        used = sum(each.size for each, _ in world.indices.values())
        made = used + shape.size <= world.room
        if made:
            world.indices[shape.slot] = (shape, None)
        return _alive(cut, result=made)

    def write(self, shape: Shape, data: bytes, *, new: bool = False) -> None:
        world = self._world
        cut = world.begins()
        there = self._there(shape)
        assert (there is None) == new, "the Name of an index says whether it was written"
        assert len(data) == shape.size, "nothing of an older value may stay behind"
        world.indices[shape.slot] = (shape, data)
        world.writes[shape.slot] = world.writes.get(shape.slot, 0) + 1
        _alive(cut)

    def read(self, shape: Shape, policy: Sequence[Assertion]) -> bytes:
        cut = self._world.begins()
        data = self._there(shape)
        self._check(shape.policy, policy)
        assert data is not None, "an index is read before it was written"
        _alive(cut)
        return data

    def remove(self, shape: Shape) -> None:
        cut = self._world.begins()
        assert self._there(shape) is not None, "removed by a Name that it does not have yet"
        del self._world.indices[shape.slot]
        _alive(cut)

    def remove_orphan(self, shape: Shape) -> bool:
        cut = self._world.begins()
        there = self._world.indices.get(shape.slot, (shape, None))
        is_ours = there[0] == shape
        if is_ours:
            self._world.indices.pop(shape.slot, None)
        return _alive(cut, result=is_ours)

    def owned(self, slot: int) -> Shape | None:
        cut = self._world.begins()
        shape = self._world.indices[slot][0]
        _alive(cut)
        return shape if shape.size in SIZES else None

    def seal(self, data: bytes, policy: Sequence[Assertion]) -> SealedObject:
        cut = self._world.begins()
        private = len(self._world.sealed).to_bytes(4, "big")
        self._world.sealed[private] = (data, _digest(policy))
        _alive(cut)
        return SealedObject(_SEALED_PUBLIC, private)

    def unseal(self, sealed: SealedObject, policy: Sequence[Assertion]) -> bytes:
        cut = self._world.begins()
        data, digest = self._world.sealed[sealed.private]
        self._check(digest, policy)
        _alive(cut)
        return data

    def _there(self, shape: Shape) -> bytes | None:
        if shape.slot not in self._world.indices:
            raise HandleNotFoundError("nothing there", hint="none", rc=0x18B)
        found, data = self._world.indices[shape.slot]
        if found != shape:
            raise refusal(0x98E)
        return data

    def _check(self, digest: str, policy: Sequence[Assertion]) -> None:
        assert _digest(policy) == digest, "read with another policy than it has"
        if digest not in self._world.satisfied:
            raise refusal(0x99D)


class ModelFolder:
    """`tpm_mtls_agent.storage.secrets_folder.SecretsFolder` on a `World`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def files(self) -> frozenset[str]:
        return frozenset(self._world.files)

    def read(self, file: str) -> bytes:
        if file not in self._world.files:
            raise IdentityError("gone", hint="none")
        return self._world.files[file]

    def write(self, file: str, data: bytes) -> None:
        """As `tpm_mtls.files.write_atomic`: a cut in its midst leaves a temporary file."""
        world = self._world
        if world.disk_full:
            raise full_disk()
        temporary = f".{file}.00000000.tmp"
        world.files[temporary] = b""
        try:
            cut = world.begins(disk=True)
        except StorageError:
            del world.files[temporary]
            raise
        del world.files[temporary]
        world.files[file] = data
        _alive(cut)

    def remove(self, file: str) -> None:
        cut = self._world.begins(disk=True)
        self._world.files.pop(file, None)
        _alive(cut)

    def save(self, table: Table) -> None:
        self.write("table.json", encode_table(table))

    def load_table(self) -> Table:
        return self._world.table()


def _digest(policy: Sequence[Assertion]) -> str:
    return policy_digest(policy).hex() if policy else ""


def _alive(cut: BaseException | None, *, result: bool = True) -> bool:
    if cut is not None:
        raise cut
    return result
