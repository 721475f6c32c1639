"""Sealing secrets of any size into blobs, and getting them back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from tpm_mtls.errors import (
    AuthorizationError,
    ForeignKeyError,
    KeyReferenceError,
    PemError,
    StorageRootKeyChangedError,
    UsageError,
)
from tpm_mtls.files import storage_errors
from tpm_mtls.identity import load_record
from tpm_mtls.key_reference import PERSISTENT_FIRST, PERSISTENT_LAST, parse_handle
from tpm_mtls.sealed_blob import SealedBlob, open_payload, payload_for
from tpm_mtls.tpm import OWNER_HIERARCHY, SRK_HANDLE
from tpm_mtls.tpm.templates import hierarchy_parent_template, tools_parent_template

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.tpm import LoadedKey, Tpm

Parent: TypeAlias = int | bytes
"""A persistent handle; or a primary key of the owner hierarchy, made of its template (a marshalled TPMT_PUBLIC)."""

_BAD_AUTH: Final = 0x9A2  # TPM_RC_BAD_AUTH for the first session: what the TPM would answer
_INTEGRITY: Final = 0x1DF  # TPM_RC_INTEGRITY, first parameter: the same


def pinned_name(state_dir: Path) -> bytes | None:
    """Name of the storage root key as the identity in ``state_dir`` has it; none where there is no identity.

    Raises:
        IdentityError: it is damaged.
        StorageError: it cannot be read.
    """
    with storage_errors(state_dir, "read"):
        record = load_record(state_dir)
    return bytes.fromhex(record.srk_name) if record is not None and record.is_tpm else None


def seal_blob(
    tpm: Tpm, secret: bytes, *, policy: Sequence[Assertion] = (), authorization: Secret | None = None
) -> SealedBlob:
    """``secret``, at most 64 KiB, sealed (three commands; six where there is no storage root key yet).

    Raises:
        StorageRootKeyChangedError: the storage root key is not the expected one; nothing was sent.
        UsageError: ``policy`` and ``authorization`` contradict each other.
    """
    payload = payload_for(secret)
    sealed = tpm.sealing.seal(payload.data, policy=policy, authorization=authorization)
    return SealedBlob(
        sealed,
        parent=SRK_HANDLE,
        empty_auth=authorization is None,
        srk=tpm.sessions.srk().name,
        policy=tuple(policy),
        ciphertext=payload.ciphertext(sealed.public.name),
    )


def unseal_blob(
    tpm: Tpm,
    blob: SealedBlob,
    *,
    policy: Sequence[Assertion] = (),
    signed_policies: Sequence[FoundPolicy] = (),
    authorization: Secret | None = None,
    parent: Parent | None = None,
    name: str = "the blob",
) -> bytes:
    """The secret in ``blob`` (five commands, with a policy on PCRs six).

    Args:
        tpm: an open TPM.
        blob: what was sealed.
        policy: what must hold for it.
        signed_policies: the newest first, where ``policy`` asks for one.
        authorization: its authorization value, if it has one.
        parent: under which key; none for the one that ``blob`` names.
        name: where the blob came from, for errors.

    Raises:
        AuthorizationError: it has an authorization value, and none or another one is given.
        PolicyRefusedError, PolicyError, TpmLockoutError, ForeignKeyError: see `tpm_mtls.tpm.sealing`.
        PemError: a part of it is damaged, missing or another blob's.
    """
    if authorization is None and not blob.empty_auth and blob.srk is not None:
        raise _no_value(name)
    with _loaded_parent(tpm, parent_of(blob) if parent is None else parent) as key:
        data = tpm.sealing.unseal(
            blob.sealed, policy=policy, signed_policies=signed_policies, authorization=authorization, parent=key
        )
    return open_payload(data, blob, name)


def parse_parent(text: str) -> Parent:
    """The key that ``text`` names: a persistent handle in hexadecimal, or ``ecc`` or ``rsa`` for tpm2_createprimary's.

    Raises:
        UsageError: it is neither.
    """
    if text in {"ecc", "rsa"}:
        return tools_parent_template(rsa=text == "rsa")
    try:
        return parse_handle(text)
    except KeyReferenceError as error:
        raise UsageError(f"not a parent: {text[:40]!r}", hint="a handle such as 0x81000001, ecc, or rsa") from error


def parent_of(blob: SealedBlob) -> Parent:
    """The key under which ``blob`` says that it was sealed.

    Raises:
        PemError: it is neither persistent nor the owner hierarchy's.
    """
    if blob.parent == OWNER_HIERARCHY:
        return hierarchy_parent_template(rsa=blob.rsa_parent)
    if not PERSISTENT_FIRST <= blob.parent <= PERSISTENT_LAST:
        raise PemError(
            f"it was sealed under {blob.parent:#010x}, which is neither persistent nor the owner hierarchy",
            hint="say which key that is: --parent",
        )
    return blob.parent


@contextmanager
def _loaded_parent(tpm: Tpm, parent: Parent) -> Iterator[LoadedKey | None]:
    """None for the storage root key, which `tpm_mtls.tpm.sealing` knows; one command for another one."""
    if parent == SRK_HANDLE:
        yield None
    elif isinstance(parent, int):
        yield tpm.use_persistent(parent)
    else:
        with tpm.create_primary(parent) as primary:
            yield primary


@contextmanager
def of_this_tpm(blob: SealedBlob, name: str) -> Iterator[None]:
    """For a block in which the storage root key's Name comes from ``blob``: another one means that it is not ours.

    Raises:
        ForeignKeyError: the TPM has another storage root key, or none.
    """
    try:
        yield
    except StorageRootKeyChangedError as error:
        if error.expected != blob.srk:
            raise
        raise ForeignKeyError(
            f"{name} was sealed by another TPM, or this one was cleared since: {error}",
            hint="use it on the device that sealed it; after a clear its content is lost, but keep it until you know",
            rc=_INTEGRITY,
        ) from error


def _no_value(name: str) -> AuthorizationError:
    return AuthorizationError(
        f"{name} needs its authorization value",
        hint="give it: --auth prompt, file:F or credential:NAME",
        rc=_BAD_AUTH,
    )
