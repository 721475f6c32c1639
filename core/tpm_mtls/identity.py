"""The identity folder: what a device knows about its own TLS identity.

``identity.json``, ``device.key.pem`` (absent for a persistent handle), ``device.cert.pem`` (leaf, then issuing CA),
``ca.cert.pem`` (trust anchor) and, where the TPM vouched for the key, ``attestation.key.json``. Every file is written
atomically, ``identity.json`` last: a folder that has one is complete.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tpm_mtls.errors import IdentityError, KeyReferenceError
from tpm_mtls.files import make_folder, write_atomic
from tpm_mtls.json_record import load_json_record
from tpm_mtls.key_reference import KeyFile, KeyReference, PersistentHandle, parse_key_reference

DEFAULT_FOLDER = Path("/var/lib/tpm-mtls")
RECORD = "identity.json"
KEY = "device.key.pem"
ATTESTATION_KEY = "attestation.key.json"
CERTIFICATE = "device.cert.pem"
TRUST = "ca.cert.pem"
FORMAT = 1

_RECORD_LIMIT = 16 * 1024  # bytes; the record has a dozen short fields


@dataclass(frozen=True)
class Identity:
    """What a TLS context needs: a key, its certificate chain, and whom to trust.

    Attributes:
        key: the private key.
        certificate: PEM file, the leaf first, then its issuers up to the root (the root itself left out).
        trust: PEM file with the trust anchors for the other side.
    """

    key: KeyReference
    certificate: Path
    trust: Path


class IdentityRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``identity.json``.

    Attributes:
        format: version of this structure.
        is_tpm: whether the key lives in a TPM. Where it does not (``first-boot --no-tpm=soft``) it is a software key in
            a file, and everything about a TPM is empty. Records written before there was this field are of a TPM's.
        device: the device's name, from its certificate.
        key: key reference; a relative path is relative to the folder.
        algorithm: ``ecc-p256``, ``ecc-p384``, ``rsa-2048`` or ``rsa-3072``.
        key_name: Name of the TLS key in the TPM, hex (part 1, 16: nameAlg and digest of the public area).
        srk_name: Name of the storage root key, hex: tells a cleared or exchanged TPM from the one that made the key.
        ek_sha256: SHA-256 of the endorsement key's public key (DER SPKI), hex; none when the TPM has not been asked.
        tpm_vendor: manufacturer, four characters (TPM_PT_MANUFACTURER).
        tpm_firmware: firmware version as the TPM reports it.
        reset_count: TPMS_CLOCK_INFO.resetCount when it was enrolled.
        ca_url: the EST server that issued the certificate, where renewals go.
        enrolled_by: how the CA was convinced: ``token``, or ``tpm`` for evidence of the TPM.
    """

    format: int = FORMAT
    is_tpm: bool = True
    device: str
    key: str
    algorithm: str
    key_name: str = ""
    srk_name: str = ""
    ek_sha256: str | None = None
    tpm_vendor: str = ""
    tpm_firmware: str = ""
    reset_count: int = 0
    ca_url: str
    enrolled_by: str


def load_identity(folder: Path = DEFAULT_FOLDER) -> Identity:
    """The identity in ``folder``, ready for a TLS context.

    Raises:
        IdentityError: there is none yet, or its record is damaged or of a newer format.
        StorageError: it cannot be read.
    """
    record = load_record(folder)
    if record is None:
        raise IdentityError(
            f"there is no identity in {folder}",
            hint="enroll the device first: tpm-mtls keygen first-boot --help; or name another folder: --state-dir",
        )
    return Identity(key=_key(folder, record), certificate=folder / CERTIFICATE, trust=folder / TRUST)


def enroll_anew(folder: Path, record: IdentityRecord) -> str:
    """In a hint: the commands by which the device of ``record``, in ``folder``, gives that identity up for a new one.

    Its other options are those of the first time; with a token it takes a new one.
    """
    name = shlex.quote(str(folder))
    old = shlex.quote(f"{folder}.old")
    where = f" --state-dir {name}" if folder != DEFAULT_FOLDER else ""
    token = " --token-file FILE" if record.enrolled_by == "token" else ""
    return (
        f"mv {name} {old}; tpm-mtls keygen first-boot{where} --new-identity --ca {shlex.quote(record.ca_url)} "
        f"--trust {shlex.quote(f'{folder}.old/{TRUST}')}{token}"
    )


def load_record(folder: Path) -> IdentityRecord | None:
    """``identity.json`` of ``folder``; none when the device is not enrolled (yet).

    Raises:
        IdentityError: it is damaged or of a newer format.
        StorageError: it cannot be read.
    """
    return load_json_record(
        folder / RECORD,
        IdentityRecord,
        limit=_RECORD_LIMIT,
        version=FORMAT,
        hint="restore it from a backup, or enroll again",
        check=check_record,
    )


def check_record(record: IdentityRecord) -> None:
    """Checks that ``record`` says of a TPM's key what belongs to one, and of a software key nothing of a TPM.

    Raises:
        IdentityError: it contradicts itself.
    """
    of_tpm = (record.key_name, record.srk_name, record.tpm_vendor, record.tpm_firmware)
    if record.is_tpm and not (record.key_name or record.srk_name):
        raise IdentityError("a tpm's key without its names", hint="restore it from a backup, or enroll again")
    if not record.is_tpm and (any(of_tpm) or record.ek_sha256 is not None or record.reset_count):
        raise IdentityError("no tpm's key, but facts of a tpm", hint="restore it from a backup, or enroll again")
    if not record.is_tpm and (record.key != KEY or record.enrolled_by != "token"):
        raise IdentityError("a software key in another place", hint="restore it from a backup, or enroll again")


def save_record(folder: Path, record: IdentityRecord) -> None:
    """Writes ``identity.json`` atomically; the other files must be there already.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(folder)
    write_atomic(folder / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n", mode=0o640)


def _key(folder: Path, record: IdentityRecord) -> KeyReference:
    try:
        key = parse_key_reference(record.key)
    except KeyReferenceError as error:
        raise IdentityError(
            f"{folder / RECORD} is damaged: {error}", hint="restore it from a backup, or enroll again"
        ) from error
    return key if isinstance(key, PersistentHandle) else KeyFile(folder / key.path)
