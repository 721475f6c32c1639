"""TLS keys in the TPM: create, find again, list, remove.

    with open_tpm(tcti) as tpm:
        key = create_key(tpm, KeyAlgorithm.ECC_P256, PersistentForm())
        request = build_csr(tpm, key, common_name="device-1")

Commands sent: 3 for a key and its request as a file, 4 at a handle; 3 more where there is no storage root key yet, and
one more if nobody looked for it before (`tpm_mtls.tpm.StorageRootKey.read`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tpm_mtls.errors import HandleOccupiedError, StateError, TpmMemoryError
from tpm_mtls.files import PRIVATE_FILE, refuse_existing, write_atomic
from tpm_mtls.key_reference import KeyFile, KeyReference, PersistentHandle
from tpm_mtls.structures import KeyAlgorithm, PublicArea, Tss2Key
from tpm_mtls.tpm import SRK_HANDLE
from tpm_mtls.tpm.tls_key import load_tls_key

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.new_policy import NewPolicy
    from tpm_mtls.tpm import LoadedKey, Tpm
    from tpm_mtls_keygen.software_key import SoftwareKey

FIRST_HANDLE = 0x81000100
LAST_HANDLE = 0x8100FFFF
"""Where TLS keys go: the owner's handles after the storage keys and before the endorsement keys (0x81010000)."""

_NO_ROOM = 0x14B  # TPM_RC_NV_SPACE


@dataclass(frozen=True)
class FileForm:
    """The key lies, encrypted by the TPM, in a PEM file at ``path``."""

    path: Path


@dataclass(frozen=True)
class PersistentForm:
    """The key stays inside the TPM at ``handle``, or at the first free one from 0x81000100."""

    handle: int | None = None


KeyForm: TypeAlias = FileForm | PersistentForm


@dataclass(frozen=True)
class TpmKey:
    """A TLS key, usable as long as its TPM is open.

    Attributes:
        reference: how programs name it; ``str()`` of it is what ``openssl -key`` takes.
        loaded: the key in the TPM, for `build_csr`.
    """

    reference: KeyReference
    loaded: LoadedKey

    @property
    def public(self) -> PublicArea:
        """Its public area: ``.name``, ``.spki``, ``.algorithm``, ``.attributes``."""
        return self.loaded.public


def create_key(
    tpm: Tpm,
    algorithm: KeyAlgorithm,
    form: KeyForm,
    *,
    authorization: Secret | None = None,
    policy: NewPolicy | None = None,
) -> TpmKey:
    """Makes a new TLS key in the TPM, under the storage root key (made if absent).

    Args:
        tpm: an open TPM.
        algorithm: kind and size.
        form: where it goes. A file gets mode 0600.
        authorization: authorization value that each use of the key will need, if any.
        policy: what else must hold; its file is written before the key is there for good.

    Raises:
        StateError: the file exists.
        HandleOccupiedError: something else is at the handle, or at the storage root key's.
        AlgorithmUnsupportedError: this TPM does not have the algorithm.
        TpmMemoryError: no slot, or no NV memory is free.
        StorageError: the file cannot be written.
    """
    if isinstance(form, FileForm):
        refuse_existing(form.path)
    loaded = tpm.srk.create_key(algorithm, authorization=authorization, policy=policy.digest if policy else b"")
    with policy.written(loaded.public.name) if policy else nullcontext():
        reference = _store(tpm, loaded, form, has_authorization=authorization is not None)
    return TpmKey(reference, loaded)


def import_key(tpm: Tpm, key: SoftwareKey, form: KeyForm, *, authorization: Secret | None = None) -> TpmKey:
    """Brings the existing private ``key`` into the TPM (`tpm_mtls_keygen.software_key` reads one from a file).

    The TPM protects this copy from now on. It cannot tell what happened to the key before, and every other copy stays
    valid; the attributes fixedTPM, fixedParent and sensitiveDataOrigin are clear, so that everybody can see it.

    Raises:
        as `create_key`.
    """
    if isinstance(form, FileForm):
        refuse_existing(form.path)
    loaded = tpm.srk.import_key(key.private, key.algorithm, authorization=authorization)
    return TpmKey(_store(tpm, loaded, form, has_authorization=authorization is not None), loaded)


def load_key(tpm: Tpm, reference: KeyReference, *, authorization: Secret | None = None) -> TpmKey:
    """The key that ``reference`` names, ready to sign in ``tpm``.

    Raises:
        HandleNotFoundError: nothing is at that handle.
        ForeignKeyError: the file's key was made by another TPM, or this one was cleared since.
        PemError: the file is no ``TSS2 PRIVATE KEY``.
        StorageError: the file cannot be read.
    """
    return TpmKey(reference, load_tls_key(tpm, reference, authorization=authorization))


def remove_key(tpm: Tpm, handle: int) -> None:
    """Removes the persistent key at ``handle``, for good (two commands).

    Raises:
        StateError: the handle is outside the range for TLS keys (it may be the storage root or an endorsement key), or
            holds a storage key, under which other keys may lie.
        HandleNotFoundError: nothing is there.
        AuthorizationError: the owner hierarchy has another authorization value.
    """
    check_removable(tpm, handle)
    tpm.remove_persistent(handle)


def check_removable(tpm: Tpm, handle: int) -> PublicArea:
    """What `remove_key` would remove (one command).

    Raises:
        as `remove_key`.
    """
    if not FIRST_HANDLE <= handle <= LAST_HANDLE:
        raise StateError(
            f"{handle:#010x} is not removed: TLS keys are from {FIRST_HANDLE:#010x} to {LAST_HANDLE:#010x} only",
            hint="storage root and endorsement keys serve others too; who is sure uses tpm2_evictcontrol",
        )
    public = tpm.read_public(handle).public
    if public.is_storage_key:
        raise StateError(
            f"{handle:#010x} is not removed: it is a storage key, other keys may lie under it",
            hint="who is sure uses tpm2_evictcontrol",
        )
    return public


def _store(tpm: Tpm, loaded: LoadedKey, form: KeyForm, *, has_authorization: bool) -> KeyReference:
    if isinstance(form, FileForm):
        key = Tss2Key(loaded.public, loaded.private, parent=SRK_HANDLE, empty_auth=not has_authorization)
        write_atomic(form.path, key.to_pem(), mode=PRIVATE_FILE, replace=False)
        return KeyFile(form.path)
    if form.handle is not None:
        tpm.persist(loaded, form.handle)
        return PersistentHandle(form.handle)
    try:
        tpm.persist(loaded, FIRST_HANDLE)
    except HandleOccupiedError:
        handle = first_free_handle(tpm)
        tpm.persist(loaded, handle)
        return PersistentHandle(handle)
    return PersistentHandle(FIRST_HANDLE)


def first_free_handle(tpm: Tpm) -> int:
    """The lowest unused handle for a TLS key (one command).

    Raises:
        TpmMemoryError: all are used.
    """
    used = set(tpm.persistent_handles())
    for handle in range(FIRST_HANDLE, LAST_HANDLE + 1):
        if handle not in used:
            return handle
    raise TpmMemoryError("all handles for TLS keys are used", hint="remove one: tpm-mtls keygen remove", rc=_NO_ROOM)
