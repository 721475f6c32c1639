"""Where policies lie: beside the key, or in the identity folder, found by the Name of their key or sealed object.

Light to import: TLS programs ask it at each start whether there is any policy at all.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from tpm_mtls.files import is_there, read_capped, storage_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tpm_mtls.errors import PolicyError
    from tpm_mtls.policy.document import PolicyDocument, SignedPolicy

POLICY_SUFFIX = ".policy.json"
SIGNED_SUFFIX = ".signed-policy.json"

POLICY_FILE = 0o644
"""A policy is no secret: it says what must hold, and the TPM sees to it."""


class FoundPolicy(NamedTuple):
    """A signed policy, and the file that it is in."""

    path: Path
    policy: SignedPolicy


def has_policies(folder: Path) -> bool:
    """Whether ``folder`` has a policy of some key; not, if it is not there.

    Raises:
        StorageError: it cannot be read.
    """
    return any(_files(folder, POLICY_SUFFIX))


def policy_path(folder: Path, name: bytes) -> Path:
    """The file in ``folder`` for the policy of the object with the Name ``name``."""
    return folder / f"{name.hex()}{POLICY_SUFFIX}"


def find_policy(name: bytes, folders: Iterable[Path]) -> PolicyDocument | None:
    """The policy of the object with the Name ``name``, from the first of ``folders`` that has one; none if none has.

    Raises:
        PolicyError: it is damaged, or another object's.
        PemError, StorageError: it is oversized, or cannot be read.
    """
    for folder in folders:
        path = policy_path(folder, name)
        if is_there(path):
            return _read(path, name)
    return None


def find_signed_policies(folders: Iterable[Path]) -> tuple[list[FoundPolicy], list[PolicyError]]:
    """All signed policies in ``folders``, the newest first, and what is wrong with those that cannot be read.

    No signature is verified.

    Raises:
        StorageError: a folder cannot be read.
    """
    from tpm_mtls.errors import PemError, PolicyError, StorageError  # noqa: PLC0415 - only here
    from tpm_mtls.policy.document import parse_signed_policy  # noqa: PLC0415 - imports msgspec

    found: list[FoundPolicy] = []
    damaged: list[PolicyError] = []
    for path in [path for folder in dict.fromkeys(folders) for path in _files(folder, SIGNED_SUFFIX)]:
        try:
            found.append(FoundPolicy(path, parse_signed_policy(_read_capped(path), str(path))))
        except PolicyError as error:
            damaged.append(error)
        except (PemError, StorageError) as error:
            damaged.append(PolicyError(str(error), hint=error.hint))
    return sorted(found, key=lambda each: -each.policy.version), damaged


def write_policy(folder: Path, document: PolicyDocument) -> Path:
    """Writes the policy of an object atomically; returns the file.

    Raises:
        StorageError: it cannot be written.
    """
    from tpm_mtls.policy.document import encode  # noqa: PLC0415 - imports msgspec

    path = policy_path(folder, bytes.fromhex(document.name))
    write_atomic(path, encode(document), mode=POLICY_FILE)
    return path


def _files(folder: Path, suffix: str) -> list[Path]:
    if not is_there(folder):
        return []
    with storage_errors(folder, "read"), os.scandir(folder) as entries:
        # a dot begins what `write_atomic` has not finished
        names = sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.name[0] != ".")
    return [folder / name for name in names]


def _read(path: Path, name: bytes) -> PolicyDocument:
    from tpm_mtls.errors import PolicyError  # noqa: PLC0415 - only here
    from tpm_mtls.policy.document import parse_policy  # noqa: PLC0415 - imports msgspec

    document = parse_policy(_read_capped(path), str(path))
    if document.name != name.hex():
        raise PolicyError(f"{path} is the policy of another key", hint="its name and its content must be the same Name")
    return document


def _read_capped(path: Path) -> bytes:
    from tpm_mtls.policy.document import LIMIT  # noqa: PLC0415 - imports msgspec

    return read_capped(path, limit=LIMIT)
