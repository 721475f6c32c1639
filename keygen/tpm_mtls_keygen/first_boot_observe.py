"""What is there for first boot to go on from: in the identity folder, in the TPM, and in its NV memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.errors import (
    CredentialError,
    EvidenceError,
    HandleNotFoundError,
    HandleOccupiedError,
    IdentityError,
    TpmMtlsError,
    TpmRefusedError,
)
from tpm_mtls.files import read_capped, storage_errors
from tpm_mtls.identity import load_record
from tpm_mtls.key_reference import KeyReference, PersistentHandle
from tpm_mtls.structures import PublicArea, parse_tss2_pem
from tpm_mtls_keygen.evidence import read_endorsement
from tpm_mtls_keygen.first_boot_copy import check_copy
from tpm_mtls_keygen.first_boot_folder import KeyPlace, key_place, load_journal, locate
from tpm_mtls_keygen.first_boot_steps import Facts
from tpm_mtls_keygen.issued import check_stored
from tpm_mtls_keygen.nv_mirror import find_place

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
        str(folder),
        certificate_error=None,
        record=load_record(folder),
        journal=load_journal(folder),
        files=files,
        has_attestation_key=load_attestation_key(folder) is not None,
    )


def ask_tpm(
    tpm: Tpm, folder: Path, facts: Facts, *, now: datetime, anchors: Sequence[x509.Certificate] | None
) -> Facts:
    """Adds what the TPM says, and whether the folder's certificate fits the key there.

    One command for an enrolled persistent key, two for an enrolled key file, else two or three. Where an enrolled key
    is not there, some more, to find out what happened.

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
    srk_name = srk.name.hex() if srk else None
    facts = replace(
        facts,
        key_name=name,
        srk_name=srk_name,
        handles=frozenset() if record else frozenset(tpm.persistent_handles()),
        certificate_error=certificate_error(folder, public, record, now=now, anchors=anchors) if public else None,
    )
    if record is None or settled or (name, srk_name) == (record.key_name, record.srk_name):
        return facts
    return replace(facts, ek_sha256=_endorsement_hash(tpm, folder, record), owner=_owner(tpm, folder, record))


def look_for_copy(tpm: Tpm, folder: Path, facts: Facts, *, now: datetime, anchors: Sequence[x509.Certificate]) -> Facts:
    """Adds what the TPM's NV memory says about an identity for ``folder`` (one command; four or more where it does).

    Args:
        tpm: an open TPM.
        folder: the identity folder.
        facts: from `ask_tpm`; the folder has no ``identity.json``.
        now: by which certificates are judged.
        anchors: the trust anchors that a restored certificate must lead to.
    """
    try:
        mirror = find_place(tpm, folder).mirror
    except HandleOccupiedError as error:
        return replace(facts, copy_error=error)
    if mirror is None:
        return facts
    try:
        check_copy(tpm, mirror, srk_name=facts.srk_name, now=now, anchors=anchors)
    except (CredentialError, IdentityError) as error:
        wrapped = IdentityError(
            f"the TPM remembers that this is {mirror.record.device}, but that identity cannot come back: {error}",
            hint="give it up and enroll anew: run tpm-mtls keygen first-boot as before, with --new-identity",
        )
        wrapped.__cause__ = error
        return replace(facts, copy=mirror, copy_error=wrapped)
    return replace(facts, copy=mirror)


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
        return _at_handle(tpm, key)
    if not key.path.exists():
        return None
    return parse_tss2_pem(read_capped(key.path), str(key.path)).public


def _at_handle(tpm: Tpm, reference: KeyReference) -> PublicArea | None:
    if not isinstance(reference, PersistentHandle):
        return None
    try:
        return tpm.read_public(reference.handle).public
    except HandleNotFoundError:
        return None


def _endorsement_hash(tpm: Tpm, folder: Path, record: IdentityRecord) -> str | None:
    """The endorsement key that corresponds to the record's; none if there is none to compare, or to be had."""
    if record.ek_sha256 is None:
        return None
    known = load_attestation_key(folder)
    with suppress(EvidenceError, TpmRefusedError):  # only to say more about an error that comes anyway
        return read_endorsement(tpm, known.ek_template if known else None).hash
    return None


def _owner(tpm: Tpm, folder: Path, record: IdentityRecord) -> str | None:
    try:
        place = find_place(tpm, folder)
    except HandleOccupiedError:
        return None
    devices = [*([place.mirror.record.device] if place.mirror else []), *place.others]
    return next((device for device in devices if device != record.device), None)
