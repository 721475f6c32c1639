"""What is there for first boot to go on from: in the identity folder, and in the TPM."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tpm_mtls.errors import HandleNotFoundError, TpmMtlsError
from tpm_mtls.files import read_capped, storage_errors
from tpm_mtls.identity import load_record
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.structures import PublicArea, parse_tss2_pem
from tpm_mtls_keygen.first_boot import Facts
from tpm_mtls_keygen.first_boot_folder import KeyPlace, key_place, load_journal, locate
from tpm_mtls_keygen.issued import check_stored

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from cryptography import x509

    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.tpm import Tpm


def read_folder(folder: Path) -> Facts:
    """What the folder says; of the certificate and the TPM it knows nothing yet.

    Raises:
        IdentityError: a record there is damaged.
        StorageError: it cannot be read.
    """
    with storage_errors(folder, "read"):
        files = frozenset(path.name for path in folder.iterdir())
    return Facts(
        str(folder), certificate_error=None, record=load_record(folder), journal=load_journal(folder), files=files
    )


def ask_tpm(
    tpm: Tpm, folder: Path, facts: Facts, *, now: datetime, anchors: Sequence[x509.Certificate] | None
) -> Facts:
    """Adds what the TPM says, and whether the folder's certificate fits the key there.

    One command for an enrolled persistent key, two for an enrolled key file, else two or three.

    Args:
        tpm: an open TPM.
        folder: the identity folder.
        facts: from `read_folder`.
        now: by which certificates are judged.
        anchors: the trust anchors that an unfinished first boot's certificate must have been stored with.

    Raises:
        PemError: what lies in the key file's place is none.
        StorageError: it cannot be read.
        TpmUnavailableError, TpmRefusedError: the TPM does not answer, or refuses.
    """
    record, begun = facts.record, facts.record or facts.journal
    public = _find_key(tpm, folder, begun.key) if begun else None
    name = public.name.hex() if public else None
    settled = record is not None and name == record.key_name and key_place(record.key) is KeyPlace.PERSISTENT
    srk = None if settled else tpm.srk.read()  # a persistent key does not need its parent any more
    return replace(
        facts,
        key_name=name,
        srk_name=srk.name.hex() if srk else None,
        handles=frozenset() if record else frozenset(tpm.persistent_handles()),
        certificate_error=certificate_error(folder, public, record, now=now, anchors=anchors) if public else None,
    )


def certificate_error(
    folder: Path,
    public: PublicArea,
    record: IdentityRecord | None,
    *,
    now: datetime,
    anchors: Sequence[x509.Certificate] | None,
) -> TpmMtlsError | None:
    """Why the certificate and trust files do not fit the key with the public area ``public``; none when they do."""
    try:
        check_stored(
            folder,
            public_key=public.spki or b"",  # somebody else's object may have none: then nothing fits it
            now=now,
            device=record.device if record else None,
            anchors=None if record else anchors,
        )
    except TpmMtlsError as error:
        return error
    return None


def _find_key(tpm: Tpm, folder: Path, reference: str) -> PublicArea | None:
    key = locate(folder, reference)
    if isinstance(key, PersistentHandle):
        try:
            return tpm.read_public(key.handle).public
        except HandleNotFoundError:
            return None
    if not key.path.exists():
        return None
    return parse_tss2_pem(read_capped(key.path), str(key.path)).public
