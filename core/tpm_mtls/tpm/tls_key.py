"""TLS keys that exist already, loaded by their key reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import AuthorizationError, CredentialError
from tpm_mtls.files import read_capped
from tpm_mtls.key_reference import (
    PERSISTENT_FIRST,
    PERSISTENT_LAST,
    KeyFile,
    KeyReference,
    PersistentHandle,
)
from tpm_mtls.structures import Attribute, Tss2Key, parse_tss2_pem
from tpm_mtls.tpm.keys import OWNER_HIERARCHY

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.tpm.connection import Tpm
    from tpm_mtls.tpm.values import LoadedKey

_BAD_AUTH: Final = 0x9A2  # TPM_RC_BAD_AUTH for the first session: what the TPM would answer


def load_tls_key(tpm: Tpm, reference: KeyReference, *, authorization: Secret | None = None) -> LoadedKey:
    """The key that ``reference`` names, ready to sign in ``tpm`` (one command; three under the owner hierarchy).

    Raises:
        HandleNotFoundError: nothing is at that handle.
        ForeignKeyError: the file's key was made by another TPM, or this one was cleared since.
        AuthorizationError: it needs its authorization value, and to try without would count towards the lockout.
        CredentialError: it is a software key, no signing key, or its parent is of a kind that nothing can load.
        PemError: the file is no ``TSS2 PRIVATE KEY``.
        StorageError: the file cannot be read.
    """
    if isinstance(reference, PersistentHandle):
        loaded = tpm.use_persistent(reference.handle, authorization=authorization)
    else:
        key = read_key_file(reference.path)
        _check_authorization(key, reference, authorization)
        loaded = tpm.load(key.parent, key.public, key.private, authorization, rsa_parent=key.rsa_parent)
    if not loaded.public.is_signing_key:
        raise CredentialError(
            f"{reference} is no TLS key: {loaded.public.algorithm}, {', '.join(loaded.public.attribute_words)}",
            hint="name a signing key; see tpm-mtls keygen list",
        )
    return loaded


def read_key_file(path: Path) -> Tss2Key:
    """The ``TSS2 PRIVATE KEY`` in the file ``path``; no TPM is asked.

    Raises:
        CredentialError: it is a software key, or its parent is of a kind that nothing can load.
        PemError: it holds no complete key.
        StorageError: it cannot be read.
    """
    if not KeyFile(path).is_tss2():
        raise CredentialError(
            f"{path} is a software key, not one of a TPM",
            hint=f"bring it into the TPM: tpm-mtls keygen import --in {path} --out F; or make a new one: keygen create",
        )
    key = parse_tss2_pem(read_capped(path), str(path))
    if key.parent != OWNER_HIERARCHY and not PERSISTENT_FIRST <= key.parent <= PERSISTENT_LAST:
        raise CredentialError(
            f"{path} has the parent {key.parent:#010x}, which is neither persistent nor the owner hierarchy",
            hint="make a new key: tpm-mtls keygen create",
        )
    return key


def _check_authorization(key: Tss2Key, reference: KeyReference, authorization: Secret | None) -> None:
    """Refuses to try a key without its authorization value where that try would count towards the lockout."""
    if authorization is None and not key.empty_auth and Attribute.NODA not in key.public.attributes:
        raise AuthorizationError(
            f"{reference} needs its authorization value",
            hint="give it: --auth prompt, file:F or credential:NAME",
            rc=_BAD_AUTH,
        )
