"""Records of the identity folder: JSON files of a known structure and format version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from tpm_mtls.errors import CredentialError, IdentityError
from tpm_mtls.files import is_there, read_capped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Versioned(Protocol):
    """A structure that says which version of itself it is."""

    @property
    def format(self) -> int:
        """The version."""


Record = TypeVar("Record", bound=Versioned)


def load_json_record(
    path: Path,
    structure: type[Record],
    *,
    limit: int,
    version: int,
    hint: str,
    check: Callable[[Record], object] | None = None,
) -> Record | None:
    """The record in ``path``; none when the file is not there.

    Args:
        path: the file.
        structure: what it must have, and nothing else.
        limit: its size at the most, bytes.
        version: the ``format`` that is understood.
        hint: what to do about a damaged one.
        check: says by a `CredentialError` or `IdentityError` what else is wrong with it.

    Raises:
        IdentityError: it is damaged or of another version.
        PemError: it is oversized.
        StorageError: it cannot be read.
    """
    if not is_there(path):
        return None
    data = read_capped(path, limit=limit)
    try:
        record = msgspec.json.decode(data, type=structure)
        if check is not None:
            check(record)
    except (msgspec.DecodeError, UnicodeDecodeError, CredentialError, IdentityError) as error:
        raise IdentityError(f"{path} is damaged: {str(error).lower()}", hint=hint) from error
    if record.format != version:
        raise IdentityError(
            f"{path} has format {record.format}, expected {version}", hint="use the tpm-mtls that wrote it"
        )
    return record
