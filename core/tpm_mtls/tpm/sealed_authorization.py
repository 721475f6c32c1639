"""Authorization values that the TPM itself keeps sealed, in a file as ``tpm-mtls seal`` writes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.authorization import TPM_LIMIT, SealedFile, Secret
from tpm_mtls.errors import PemError, StorageRootKeyChangedError
from tpm_mtls.files import check_private, read_capped
from tpm_mtls.sealed_blob import FILE_LIMIT, SealedBlob, open_payload, parse_blob
from tpm_mtls.tpm.storage_root import SRK_HANDLE

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import HierarchyAuthorization
    from tpm_mtls.tpm.connection import Tpm


def resolve(tpm: Tpm, given: HierarchyAuthorization | None) -> Secret | None:
    """The authorization value ``given``: itself, or what the TPM unseals (five commands); none for none.

    Raises:
        as `unseal_file`.
    """
    return unseal_file(tpm, given.path) if isinstance(given, SealedFile) else given


def seal_value(tpm: Tpm, value: Secret) -> bytes:
    """A file from which `unseal_file` gets ``value`` back (three commands).

    Raises:
        as `Sealing.seal`.
    """
    sealed = tpm.sealing.seal(value.value)
    return SealedBlob(sealed, parent=SRK_HANDLE, empty_auth=True, srk=tpm.sessions.srk().name).encode()


def unseal_file(tpm: Tpm, path: Path) -> Secret:
    """The authorization value that is sealed in the file ``path``, under the storage root key, without a policy.

    Who has the file and may use the TPM gets the value: so the file must be private.

    Raises:
        StorageError: the file cannot be read, or other users can read it.
        PemError: it is no sealed data, or not an authorization value.
        PolicyError: it is sealed with a policy.
        StorageRootKeyChangedError: another storage root key sealed it: the TPM was cleared or exchanged.
        ForeignKeyError: another TPM sealed it.
    """
    check_private(path)
    blob = parse_blob(read_capped(path, limit=FILE_LIMIT), str(path))
    found = tpm.srk.read()
    if found is None or blob.srk not in {None, found.name}:
        raise StorageRootKeyChangedError(expected=blob.srk or b"", found=found.name if found is not None else None)
    value = open_payload(tpm.sealing.unseal(blob.sealed), blob, str(path))
    if not 0 < len(value) <= TPM_LIMIT:
        raise PemError(
            f"{path} holds {len(value)} bytes, which are no authorization value",
            hint=f"a TPM takes up to {TPM_LIMIT}; was another file meant?",
        )
    return Secret(value)
