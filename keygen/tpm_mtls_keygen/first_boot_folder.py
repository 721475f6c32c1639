"""The identity folder while first boot works in it: its lock, and the journal of what was begun."""

from __future__ import annotations

import enum
import fcntl
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.files import PRIVATE_FILE, remove_file, storage_errors, write_atomic
from tpm_mtls.identity import ATTESTATION_KEY, CERTIFICATE, KEY, RECORD, TRUST
from tpm_mtls.json_record import load_json_record
from tpm_mtls.key_algorithm import KeyAlgorithm  # noqa: TC001 - msgspec reads the annotation at run time
from tpm_mtls.key_reference import KeyFile, KeyReference, PersistentHandle, parse_key_reference
from tpm_mtls.policy.files import POLICY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

JOURNAL = "first-boot.json"
JOURNAL_FORMAT = 1

INSTALL = "install.json"

TRIAL_KEY = "trial.key.pem"
TRIAL_CERTIFICATE = "trial.cert.pem"

_TRIAL = (TRIAL_KEY, TRIAL_CERTIFICATE)
_OWN = (JOURNAL, INSTALL, KEY, ATTESTATION_KEY, CERTIFICATE, TRUST, RECORD, *_TRIAL)
_POLICY = r"000b[0-9a-f]{64}" + re.escape(POLICY_SUFFIX)
# as `tpm_mtls.files.write_atomic` names them
_LEFTOVER = re.compile(r"\.(" + "|".join([*map(re.escape, _OWN), _POLICY]) + r")\.[0-9a-f]{8}\.tmp")
_JOURNAL_LIMIT = 4 * 1024  # bytes; it has five short fields


class KeyPlace(enum.Enum):
    """Where a device key is kept; the values are what users type."""

    PERSISTENT = "persistent"
    TSS2 = "tss2"


class Journal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``first-boot.json``: the key that an unfinished first boot made or was about to make.

    Attributes:
        format: version of this structure.
        key: key reference; a relative path is relative to the folder.
        algorithm: the key's algorithm.
        key_name: the key's Name, hex.
        srk_name: Name of the storage root key it was made under, hex.
    """

    format: int = JOURNAL_FORMAT
    key: str
    algorithm: KeyAlgorithm
    key_name: str
    srk_name: str


def load_journal(folder: Path) -> Journal | None:
    """``first-boot.json`` of ``folder``; none when no first boot was interrupted there.

    Raises:
        IdentityError: it is damaged or of a newer format.
        StorageError, PemError: it cannot be read.
    """
    return load_json_record(
        folder / JOURNAL,
        Journal,
        limit=_JOURNAL_LIMIT,
        version=JOURNAL_FORMAT,
        hint="see what it says and which keys the TPM has (tpm-mtls keygen list), then remove it",
        check=lambda journal: parse_key_reference(journal.key),
    )


def save_journal(folder: Path, journal: Journal) -> None:
    """Writes ``first-boot.json`` durably.

    Raises:
        StorageError: it cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(journal), indent=2) + b"\n"
    write_atomic(folder / JOURNAL, data, mode=PRIVATE_FILE)


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files that a killed first boot or renewal left; the caller holds the lock.

    Raises:
        StorageError: one cannot be removed.
    """
    with storage_errors(folder, "read"):
        leftovers = [path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name) or path.name in _TRIAL]
    for path in leftovers:
        remove_file(path)


def key_place(reference: str) -> KeyPlace:
    """Where the key is that ``reference`` names."""
    return KeyPlace.PERSISTENT if isinstance(parse_key_reference(reference), PersistentHandle) else KeyPlace.TSS2


def locate(folder: Path, reference: str) -> KeyReference:
    """The key of ``folder`` that ``reference`` names: a relative path is relative to the folder."""
    key = parse_key_reference(reference)
    return key if isinstance(key, PersistentHandle) else KeyFile(folder / key.path)


@contextmanager
def locked(folder: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Keeps every other first boot out of ``folder``, which must exist, until the block or the process ends.

    Waits for another one to finish, as long as that takes; ``waiting`` is called before.

    Raises:
        StorageError: the folder cannot be opened.
    """
    with storage_errors(folder, "open"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with storage_errors(folder, "lock"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
