"""The Name of an attestation key that an operator vouches for, from what there is of the key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.errors import CredentialError, UsageError
from tpm_mtls.evidence_checks import check_attestation_key
from tpm_mtls.files import read_capped
from tpm_mtls.structures import parse_public_area

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT: Final = 16 * 1024  # bytes, of an attestation.key.json
_NAME: Final = re.compile(r"000b[0-9a-f]{64}|000c[0-9a-f]{96}|000d[0-9a-f]{128}")  # nameAlg and digest: part 1, 16


class _Record(msgspec.Struct):
    """As much of an ``attestation.key.json`` as is needed."""

    public: bytes


def check_key_name(text: str) -> str:
    """Returns ``text`` if it is a key's Name in lower-case hexadecimal.

    Raises:
        UsageError: it is none.
    """
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"not a key's Name: {text[:80]!r}", hint="000b and a SHA-256 digest in lower-case hex: xxd -p -c 99 ak.name"
        )
    return text


def read_key_name(path: Path) -> str:
    """The Name of the attestation key in ``path``: its TPM2B_PUBLIC, TPMT_PUBLIC or ``attestation.key.json``.

    1. It is such a file.
    2. The key is an attestation key: it signs nothing but what its TPM wrote (`check_attestation_key`).

    Not verified: that any TPM holds it.

    Raises:
        CredentialError: a step failed.
        StorageError: it cannot be read.
    """
    data = read_capped(path, limit=_LIMIT)
    try:
        area = parse_public_area(_public(data))  # 1
    except CredentialError as error:
        raise CredentialError(
            f"{path} holds no key's public area", hint="as tpm2_createak -u writes it, or an attestation.key.json"
        ) from error
    check_attestation_key(area)  # 2
    return area.name.hex()


def _public(data: bytes) -> bytes:
    """The TPMT_PUBLIC in ``data``, as far as its first bytes tell."""
    if data.lstrip().startswith(b"{"):
        try:
            return msgspec.json.decode(data, type=_Record).public
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CredentialError("no record of an attestation key", hint="copy the file again") from error
    is_sized = len(data) > 2 and int.from_bytes(data[:2]) == len(data) - 2  # noqa: PLR2004 - the size of the size
    return data[2:] if is_sized else data
