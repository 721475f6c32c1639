"""TLS keys in the TPM: create, find again, list, remove.

    with open_tpm(tcti) as tpm:
        key = create_key(tpm, KeyAlgorithm.ECC_P256, PersistentForm())
        request = build_csr(tpm, key, common_name="device-1")

Commands sent: 3 for a key and its request as a file, 4 at a handle; 3 more where there is no storage root key yet, and
one more if nobody looked for it before (`tpm_mtls.tpm.StorageRootKey.read`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tpm_mtls.errors import CredentialError, HandleOccupiedError, StateError, TpmMemoryError
from tpm_mtls.files import PRIVATE_FILE, read_capped, write_atomic
from tpm_mtls.key_reference import KeyFile, KeyReference, PersistentHandle
from tpm_mtls.structures import KeyAlgorithm, PublicArea, Tss2Key, parse_tss2_pem
from tpm_mtls.tpm import SRK_HANDLE

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.tpm import LoadedKey, Tpm

FIRST_HANDLE = 0x81000100
LAST_HANDLE = 0x8100FFFF
"""Where TLS keys go: the owner's handles after the storage keys and before the endorsement keys (0x81010000)."""


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


def create_key(tpm: Tpm, algorithm: KeyAlgorithm, form: KeyForm, *, authorization: Secret | None = None) -> TpmKey:
    """Makes a new TLS key in the TPM, under the storage root key (made if absent).

    Args:
        tpm: an open TPM.
        algorithm: kind and size.
        form: where it goes. A file gets mode 0600.
        authorization: authorization value that each use of the key will need, if any.

    Raises:
        StateError: the file exists.
        HandleOccupiedError: something else is at the handle, or at the storage root key's.
        AlgorithmUnsupportedError: this TPM does not have the algorithm.
        TpmMemoryError: no slot, or no NV memory is free.
        StorageError: the file cannot be written.
    """
    if isinstance(form, FileForm):
        _refuse_existing(form.path)
    loaded = tpm.srk.create_key(algorithm, authorization=authorization)
    return TpmKey(_store(tpm, loaded, form, has_authorization=authorization is not None), loaded)


def load_key(tpm: Tpm, reference: KeyReference, *, authorization: Secret | None = None) -> TpmKey:
    """The key that ``reference`` names, ready to sign in ``tpm``.

    Raises:
        HandleNotFoundError: nothing is at that handle.
        ForeignKeyError: the file's key was made by another TPM, or this one was cleared since.
        PemError: the file is no ``TSS2 PRIVATE KEY``.
        StorageError: the file cannot be read.
    """
    if isinstance(reference, PersistentHandle):
        loaded = tpm.use_persistent(reference.handle, authorization=authorization)
    else:
        key = parse_tss2_pem(read_capped(reference.path), str(reference.path))
        loaded = tpm.load(key.parent, key.public, key.private, authorization)
    if not loaded.public.is_signing_key:
        raise CredentialError(
            f"{reference} is no TLS key: {loaded.public.algorithm}, {', '.join(loaded.public.attribute_words)}",
            hint="name a signing key; see tpm-mtls keygen list",
        )
    return TpmKey(reference, loaded)


def remove_key(tpm: Tpm, handle: int) -> None:
    """Removes the persistent key at ``handle``, for good.

    Raises:
        StateError: the handle is outside the range for TLS keys (it may be the storage root or an endorsement key).
        HandleNotFoundError: nothing is there.
    """
    if not FIRST_HANDLE <= handle <= LAST_HANDLE:
        raise StateError(
            f"{handle:#010x} is not removed: TLS keys are from {FIRST_HANDLE:#010x} to {LAST_HANDLE:#010x} only",
            hint="storage root and endorsement keys serve others too; who is sure uses tpm2_evictcontrol",
        )
    tpm.remove_persistent(handle)


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise StateError(
            f"{path} exists already and is not overwritten", hint="name another file, or remove that one yourself"
        )


def _store(tpm: Tpm, loaded: LoadedKey, form: KeyForm, *, has_authorization: bool) -> KeyReference:
    if isinstance(form, FileForm):
        key = Tss2Key(loaded.public, loaded.private, parent=SRK_HANDLE, empty_auth=not has_authorization)
        write_atomic(form.path, key.to_pem(), mode=PRIVATE_FILE)
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
    raise TpmMemoryError("all handles for TLS keys are used", hint="remove one: tpm-mtls keygen remove", rc=0x14B)
