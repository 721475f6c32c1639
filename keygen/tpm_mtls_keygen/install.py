"""Changing an identity that consists of several files and a key in the TPM, as if in one step.

What shall be there is written first, whole, to ``install.json``; then it is put in place, piece by piece, and at last
``install.json`` goes. Whoever finds one finishes it, as often as it takes: each piece is what it was or what it shall
be. Renewals, and identities that come back from the TPM's NV memory, are installed so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.attestation_key import AttestationKey, save_attestation_key
from tpm_mtls.errors import HandleNotFoundError, HandleOccupiedError, IdentityError
from tpm_mtls.files import PRIVATE_FILE, remove_file, write_atomic
from tpm_mtls.identity import CERTIFICATE, KEY, TRUST, IdentityRecord, enroll_anew, save_record
from tpm_mtls.json_record import load_json_record
from tpm_mtls.key_reference import PersistentHandle, parse_key_reference
from tpm_mtls.policy.files import policy_path
from tpm_mtls.structures import Tss2Key, parse_tss2_pem
from tpm_mtls_keygen.first_boot_folder import INSTALL
from tpm_mtls_keygen.nv_mirror import find_place, read_mirror, store_mirror
from tpm_mtls_keygen.software_key import parse_software_key

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.tpm import Tpm

FORMAT = 1

_LIMIT = 128 * 1024  # bytes: certificates and trust anchors of 64 KiB at most, in base64


class Installation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``install.json``: what the identity folder and the TPM shall hold. Byte strings are base64.

    Attributes:
        format: version of this structure.
        record: ``identity.json``.
        certificates: ``device.cert.pem``.
        trust: ``ca.cert.pem``; none if it stays.
        key: the key as a TSS2 PEM file, if there is a new one: for a persistent key what is loaded and made persistent.
            For an identity without a TPM the software key itself.
        replaces: Name (hex) of the key that a new one takes the place of.
        attestation_key: ``attestation.key.json``; none if it stays.
        mirror: whether the copy in the TPM's NV memory is to be written, too.
    """

    format: int = FORMAT
    record: IdentityRecord
    certificates: bytes
    trust: bytes | None = None
    key: bytes | None = None
    replaces: str | None = None
    attestation_key: AttestationKey | None = None
    mirror: bool = True


def load_installation(folder: Path) -> Installation | None:
    """``install.json`` of ``folder``; none when no change was interrupted there.

    Raises:
        IdentityError: it is damaged or of a newer format.
        StorageError, PemError: it cannot be read.
    """
    path = folder / INSTALL
    return load_json_record(
        path,
        Installation,
        limit=_LIMIT,
        version=FORMAT,
        hint="restore the folder from a backup, or enroll anew",
        check=lambda found: found.key is None or _check_key(found.key, path, is_tpm=found.record.is_tpm),
    )


def begin(folder: Path, installation: Installation) -> None:
    """Writes ``install.json``: from here on there is no way back.

    Raises:
        StorageError: it cannot be written.
    """
    write_atomic(folder / INSTALL, msgspec.json.encode(installation) + b"\n", mode=PRIVATE_FILE)


def complete(tpm: Tpm, folder: Path, installation: Installation) -> None:
    """Puts all of ``installation`` in place, and removes ``install.json``; what is in place already stays as it is.

    Raises:
        HandleOccupiedError: somebody else's object is at the key's handle, or where the copy in the NV memory goes.
        IdentityError: the key is gone from the TPM.
        ForeignKeyError: the TPM was cleared meanwhile.
        StorageError: a file cannot be written.
    """
    record = installation.record
    reference = parse_key_reference(record.key)
    if isinstance(reference, PersistentHandle):
        _put_key(tpm, folder, reference.handle, installation)
    _put_files(folder, installation)
    if installation.mirror:
        store_mirror(tpm, find_place(tpm, folder), read_mirror(folder, record))
    if installation.replaces is not None:
        remove_file(policy_path(folder, bytes.fromhex(installation.replaces)))
    remove_file(folder / INSTALL)


def complete_without_tpm(folder: Path, installation: Installation) -> None:
    """As `complete`, for an identity whose key is a software key.

    Raises:
        StorageError: a file cannot be written.
    """
    _put_files(folder, installation)
    remove_file(folder / INSTALL)


def _put_files(folder: Path, installation: Installation) -> None:
    if installation.key is not None and installation.record.key == KEY:
        write_atomic(folder / KEY, installation.key, mode=PRIVATE_FILE)
    if installation.attestation_key is not None:
        save_attestation_key(folder, installation.attestation_key)
    if installation.trust is not None:
        write_atomic(folder / TRUST, installation.trust)
    write_atomic(folder / CERTIFICATE, installation.certificates)
    save_record(folder, installation.record)


def _check_key(key: bytes, path: Path, *, is_tpm: bool) -> object:
    return parse_tss2_pem(key, str(path)) if is_tpm else parse_software_key(key, path)


def _put_key(tpm: Tpm, folder: Path, handle: int, installation: Installation) -> None:
    try:
        there = tpm.read_public(handle).public.name.hex()
    except HandleNotFoundError:
        there = None
    wanted = installation.record.key_name
    if there == wanted:
        return
    where = PersistentHandle(handle)
    if there is not None and there != installation.replaces:
        raise HandleOccupiedError(
            f"something else is at {where}, where the device key belongs",
            hint="see what it is: tpm-mtls keygen list; then move or remove it, and run the command again",
            handle=handle,
        )
    if installation.key is None:
        raise IdentityError(
            f"the device key {where} is gone from the TPM",
            hint=f"give this identity up: {enroll_anew(folder, installation.record)}",
        )
    key: Tss2Key = parse_tss2_pem(installation.key)
    with tpm.load(key.parent, key.public, key.private, None) as loaded:  # first, lest the old one goes for nothing
        if there is not None:
            tpm.remove_persistent(handle)
        tpm.persist(loaded, handle)
