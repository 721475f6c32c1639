"""First boot's steps with the copy of the identity in the NV memory: whether it will do, bring it back, give it up."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tpm_mtls.certificates import certificates_pem
from tpm_mtls.errors import HandleNotFoundError, IdentityError, TpmMemoryError
from tpm_mtls.key_reference import PersistentHandle, parse_key_reference
from tpm_mtls.policy.files import write_policy
from tpm_mtls.policy.key_policy import check_policy
from tpm_mtls.structures import parse_tss2_pem
from tpm_mtls_keygen.install import Installation, begin, complete
from tpm_mtls_keygen.issued import check_issued, parse_certificate
from tpm_mtls_keygen.nv_mirror import find_place, read_mirror, remove_mirror, store_mirror

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from cryptography import x509

    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.nv_mirror import Mirror


def check_copy(
    tpm: Tpm, mirror: Mirror, *, srk_name: str | None, now: datetime, anchors: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """Checks that the identity in ``mirror`` can be restored; at most one command.

    1. Its key is in this TPM; or its key file can be loaded: the storage root key is the one it was made under.
    2. Its certificate is for that key and that device, valid at ``now``, and leads to one of ``anchors``.
    3. Its policy is the key's.

    Returns:
        The chain, without the anchor.

    Raises:
        IdentityError: 1, or there is no policy (3).
        CredentialError: 2 or 3.
    """
    record = mirror.record
    public = _find_key(tpm, mirror, srk_name)
    if public is None or public.name.hex() != record.key_name:
        raise IdentityError(f"its key {record.key} is gone", hint="enroll anew")
    if public.policy:  # 3
        if mirror.policy is None:
            raise IdentityError(f"the policy of its key {record.key} is gone", hint="enroll anew")
        check_policy(public, mirror.policy)
    certificates = [parse_certificate(der) for der in mirror.certificates]
    return check_issued(certificates, (), anchors, public_key=public.spki or b"", device=record.device, now=now)


def restore(
    tpm: Tpm,
    folder: Path,
    mirror: Mirror,
    *,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
) -> None:
    """Fills ``folder`` from ``mirror``; ``chain`` is what `check_copy` returned for these ``anchors``.

    Killed anywhere, the next run completes it (`tpm_mtls_keygen.install`).

    Raises:
        StorageError: a file cannot be written.
    """
    installation = Installation(
        record=mirror.record,
        certificates=certificates_pem(chain),
        trust=certificates_pem(anchors),
        key=mirror.key,
        attestation_key=mirror.attestation_key,
        mirror=False,
    )
    if mirror.policy is not None:
        write_policy(folder, mirror.policy)
    begin(folder, installation)
    complete(tpm, folder, installation)


def forget(tpm: Tpm, folder: Path, mirror: Mirror) -> None:
    """Removes the key of the identity in ``mirror``, if it is where it was, and then the mirror.

    Raises:
        AuthorizationError: the owner hierarchy has another authorization value.
    """
    reference = parse_key_reference(mirror.record.key)
    if isinstance(reference, PersistentHandle):
        with suppress(HandleNotFoundError):
            if tpm.read_public(reference.handle).public.name.hex() == mirror.record.key_name:
                tpm.remove_persistent(reference.handle)
    remove_mirror(tpm, find_place(tpm, folder))


def write_copy(tpm: Tpm, folder: Path, record: IdentityRecord) -> None:
    """Writes what ``folder`` holds, whose ``identity.json`` is ``record``, to its place, unless it is there already.

    Raises:
        HandleOccupiedError: something that is no mirror is there.
        TpmMemoryError: the NV memory is full.
    """
    try:
        store_mirror(tpm, find_place(tpm, folder), read_mirror(folder, record))
    except TpmMemoryError as error:
        error.hint = "the identity is complete; make room in the NV memory, or keep no copy of it: --no-mirror"
        raise


def _find_key(tpm: Tpm, mirror: Mirror, srk_name: str | None) -> PublicArea | None:
    if mirror.key is not None:
        return parse_tss2_pem(mirror.key).public if srk_name == mirror.record.srk_name else None
    reference = parse_key_reference(mirror.record.key)
    with suppress(HandleNotFoundError):
        if isinstance(reference, PersistentHandle):
            return tpm.read_public(reference.handle).public
    return None
