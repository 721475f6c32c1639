"""Authorization values and passphrases: read from a prompt, a file or a systemd credential, never from argv."""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tpm_mtls.errors import UsageError
from tpm_mtls.files import check_private, read_capped

SECRET_LIMIT = 1024
"""Bytes read from a secret's file; a TPM takes 32 as an authorization value, a passphrase may be longer."""

TPM_LIMIT = 32
"""An authorization value is at most as long as the digest of the object's nameAlg, SHA-256 (part 1, 17.6.4.3)."""

_SOURCES = "prompt, file:PATH or credential:NAME"
_SEALED = "sealed:"


@dataclass(frozen=True)
class Secret:
    """Bytes that never appear in a ``repr``, an error or a log.

    Attributes:
        value: the secret itself.
    """

    value: bytes = field(repr=False)


@dataclass(frozen=True)
class SealedFile:
    """A file that holds an authorization value sealed by the TPM; `tpm_mtls.tpm.open_tpm` lets the TPM unseal it.

    Attributes:
        path: the file.
    """

    path: Path


HierarchyAuthorization: TypeAlias = Secret | SealedFile
"""Of a hierarchy: unlike a key's, the TPM itself may keep it sealed, as its own use needs no such value."""


def read_secret(source: str, *, what: str, confirm: bool = False, sources: str = _SOURCES) -> Secret:
    """The secret that ``source`` says where to find.

    Args:
        source: ``prompt``, ``file:PATH`` (mode 0600; one newline at its end is not part of it) or ``credential:NAME``
            (a systemd credential, read from $CREDENTIALS_DIRECTORY).
        what: what it is, for the prompt and the errors ("authorization value", "passphrase").
        confirm: ask twice at a prompt, for a new secret.
        sources: all that the caller takes, for the errors.

    Raises:
        UsageError: another source, nothing there, or an empty, over-long or multi-line secret.
        StorageError: the file cannot be read, or other users can read it.
        PemError: the file is oversized.
    """
    kind, _, rest = source.partition(":")
    if kind == "prompt" and not rest:
        value = _prompt(what, confirm=confirm)
    elif kind == "file" and rest:
        value = _read_line(Path(rest))
    elif kind == "credential" and rest:
        value = _read_line(_credential(rest), private=False)
    else:
        # what was given is not repeated: it may be the secret itself
        raise UsageError(
            f"the {what} must be given as {sources}",
            hint="on the command line itself every local user could read it",
        )
    if not value or len(value) > SECRET_LIMIT or set(value) & {0, 10, 13}:
        raise UsageError(f"the {what} is empty, too long or has more than one line", hint="give one line of text")
    return Secret(value)


def read_authorization(source: str | None, *, confirm: bool = False, sources: str = _SOURCES) -> Secret | None:
    """An authorization value for a TPM object from ``source`` (see `read_secret`), or none for none.

    Raises:
        UsageError: as `read_secret`, and for more than `TPM_LIMIT` bytes.
        StorageError: as `read_secret`.
    """
    if source is None:
        return None
    secret = read_secret(source, what="authorization value", confirm=confirm, sources=sources)
    if len(secret.value) > TPM_LIMIT:
        raise UsageError(f"the authorization value is longer than {TPM_LIMIT} bytes", hint="a TPM takes no longer one")
    return secret


def read_hierarchy_authorization(source: str | None) -> HierarchyAuthorization | None:
    """A hierarchy's authorization value from ``source``: as `read_authorization`, or ``sealed:PATH``.

    Such a file is what ``tpm-mtls provision`` and ``tpm-mtls seal`` write (mode 0600); it is read when the TPM is open.

    Raises:
        UsageError, StorageError: as `read_authorization`.
    """
    if source is not None and source.startswith(_SEALED) and source != _SEALED:
        path = Path(source.removeprefix(_SEALED))
        check_private(path)
        return SealedFile(path)
    return read_authorization(source, sources=f"prompt, file:PATH, credential:NAME or {_SEALED}PATH")


def _prompt(what: str, *, confirm: bool) -> bytes:
    if not sys.stdin.isatty():
        raise UsageError(f"cannot ask for the {what}: no terminal", hint="give it as file:PATH or credential:NAME")
    value = getpass.getpass(f"{what}: ")
    if confirm and getpass.getpass(f"{what} (again): ") != value:
        raise UsageError(f"the two {what}s differ", hint="run the command again")
    return value.encode()


def _credential(name: str) -> Path:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise UsageError(
            f"there is no systemd credential {name}", hint=f"in the unit: LoadCredential={name}:/path/to/file"
        )
    if "/" in name:
        raise UsageError("a credential's name has no slash", hint="give the name from LoadCredential=")
    return Path(folder, name)


def _read_line(path: Path, *, private: bool = True) -> bytes:
    if private:
        check_private(path)
    return read_capped(path, limit=SECRET_LIMIT).removesuffix(b"\n").removesuffix(b"\r")
