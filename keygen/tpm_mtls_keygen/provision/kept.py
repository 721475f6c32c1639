"""Where the authorization value of a hierarchy is kept on the device: sealed by its TPM, or in a file of mode 0600.

A new value is written to ``PATH.new`` before the TPM gets it, and moved to ``PATH`` afterwards. So whatever interrupts
that, the value that the TPM has is in one of both; and what is in ``PATH`` is the one that it has.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tpm_mtls.authorization import Secret, read_authorization
from tpm_mtls.errors import UsageError
from tpm_mtls.files import PRIVATE_FILE, is_there, make_folder, read_capped, storage_errors, sync_folder, write_atomic
from tpm_mtls.sealed_blob import FILE_LIMIT, parse_blob
from tpm_mtls.tpm.sealed_authorization import seal_value, unseal_file

if TYPE_CHECKING:
    from tpm_mtls.tpm import Tpm

_BYTES: Final = 16
"""Of a new value; in hexadecimal, which every tool takes, it has as many characters as a TPM takes."""


@dataclass(frozen=True)
class Kept:
    """Where a value is kept.

    Attributes:
        path: the file.
        sealed: whether the TPM seals it; else it is there as it is, for systemd's ``LoadCredential=``.
    """

    path: Path
    sealed: bool

    @property
    def begun(self) -> Path:
        """Where it is as long as the TPM may not have it."""
        return self.path.with_name(f"{self.path.name}.new")

    def __str__(self) -> str:
        """How other commands' options name it."""
        return f"{'sealed' if self.sealed else 'file'}:{self.path}"


def parse_kept(source: str, folder: Path) -> Kept:
    """Where ``source`` says that a value is kept; a relative path begins at ``folder``.

    Raises:
        UsageError: it is not ``sealed:PATH`` or ``file:PATH``.
    """
    kind, _, path = source.partition(":")
    if kind not in {"sealed", "file"} or "\0" in path or path.endswith("/") or Path(path).name in {"", ".."}:
        raise UsageError(  # not repeated: it may be the value itself
            "an authorization is kept neither sealed nor in a file", hint='expected "sealed:PATH" or "file:PATH"'
        )
    return Kept(folder / path, sealed=kind == "sealed")


def read_kept(tpm: Tpm, kept: Kept, *, begun: bool = False, lost: bytes | None = None) -> Secret | None:
    """The value in ``kept``, or the one that was ``begun``; none where there is none.

    Args:
        tpm: an open TPM.
        kept: where.
        begun: look at the one that the TPM may not have yet.
        lost: Name of a storage root key that is gone; what it sealed is none.

    Raises:
        StorageError: the file cannot be read, or others can read it.
        CredentialError: it is damaged.
        StorageRootKeyChangedError, ForeignKeyError: another TPM sealed it, or this one was cleared since.
    """
    path = kept.begun if begun else kept.path
    if not is_there(path):
        return None
    if not kept.sealed:
        return read_authorization(f"file:{path}")
    if lost is not None and parse_blob(read_capped(path, limit=FILE_LIMIT), str(path)).srk == lost:
        return None
    return unseal_file(tpm, path)


def begin(tpm: Tpm, kept: Kept, value: Secret | None = None) -> Secret:
    """A new random value, or ``value``, in ``kept.begun``.

    Raises:
        StorageError: it cannot be written.
    """
    made = value or Secret(secrets.token_hex(_BYTES).encode())
    content = seal_value(tpm, made) if kept.sealed else made.value  # no newline: tpm2-tools' file: would take it, too
    make_folder(kept.path.parent)
    write_atomic(kept.begun, content, mode=PRIVATE_FILE)
    return made


def finish(kept: Kept) -> None:
    """The TPM has the value that was begun.

    Raises:
        StorageError: the file cannot be renamed.
    """
    with storage_errors(kept.path, "write"):
        kept.begun.replace(kept.path)
        sync_folder(kept.path.parent)
