"""The file of a value that is not in an NV index: AES-256-GCM, with a key that only the TPM gives back. Pure.

    magic (8 bytes), kind (1), NV index (4), generation (8), the name's keyed hash (32),
    TPM2B_PUBLIC and TPM2B_PRIVATE of the sealed key (kind `SEALED` only), nonce (12), ciphertext and tag

The key is either in the secret's NV index (`IN_NV`), or the file carries it, sealed by the TPM (`SEALED`). All that is
before the ciphertext is its associated data, so that a file stands for one secret, slot and generation. With the key in
NV an older file cannot be opened any more: the TPM has another key by then. A sealed one can, and that it is older is
told by the table alone: whoever puts back both the file and the table of an earlier time is not noticed.
"""

from __future__ import annotations

import re
import secrets
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tpm_mtls.errors import CredentialError, IdentityError
from tpm_mtls.structures.sealed import SealedObject, read_sealed_files

IN_NV: Final = 1
SEALED: Final = 2

VALUE_LIMIT: Final = 64 * 1024
FILE_LIMIT: Final = VALUE_LIMIT + 4 * 1024
"""Bytes of a file: a value, and two TPM structures of less than 1 KiB each."""

_MAGIC: Final = b"TPMMTLS\x02"
_HEADER: Final = struct.Struct(">8sBIQ32s")
_NONCE: Final = 12
_FILE: Final = re.compile(r"([0-9a-f]{64})\.([0-9]{1,20})\.sealed")
_HINT: Final = "restore the file as it was, or set the secret again"


@dataclass(frozen=True)
class Place:
    """Which secret's value, and where: what the TPM or the table say of it.

    Attributes:
        index: the secret's NV index.
        generation: the value's.
        name: the secret's keyed hash.
    """

    index: int
    generation: int
    name: bytes

    @property
    def file(self) -> str:
        """The file's name."""
        return file_name(self.name.hex(), self.generation)


@dataclass(frozen=True)
class Envelope:
    """A file that is where it should be; its value is not verified yet.

    Attributes:
        sealed: the sealed key; none where it is in NV.
    """

    sealed: SealedObject | None
    _associated: bytes
    _nonce: bytes
    _ciphertext: bytes
    _file: str

    @property
    def sealed_key(self) -> SealedObject:
        """The sealed key.

        Raises:
            IdentityError: there is none.
        """
        if self.sealed is None:
            raise IdentityError(f"the file {self._file} has no sealed key", hint=_HINT)
        return self.sealed

    def open(self, key: bytes) -> bytes:
        """The value.

        Raises:
            IdentityError: the file is damaged, or it is an older one and the TPM has another key by now.
        """
        try:
            return AESGCM(key).decrypt(self._nonce, self._ciphertext, self._associated)
        except InvalidTag as error:
            raise IdentityError(
                f"the file {self._file} is damaged, or older than what the TPM knows", hint=_HINT
            ) from error


def file_name(name: str, generation: int) -> str:
    """The file for ``generation`` of the secret with the keyed hash ``name``, hex."""
    return f"{name}.{generation}.sealed"


def parse_file_name(file: str) -> tuple[str, int] | None:
    """The secret's keyed hash (hex) and the generation; none for another file."""
    match = _FILE.fullmatch(file)
    return (match[1], int(match[2])) if match else None


def make_envelope(place: Place, key: bytes, value: bytes, sealed: SealedObject | None = None) -> bytes:
    """The file for ``value``.

    Args:
        place: whose it is.
        key: 32 bytes, used for this one file.
        value: at most `VALUE_LIMIT` bytes.
        sealed: the key, sealed; none where the NV index will have it.
    """
    kind = SEALED if sealed else IN_NV
    parts = sealed.public_file + sealed.private_file if sealed else b""
    nonce = secrets.token_bytes(_NONCE)
    associated = _HEADER.pack(_MAGIC, kind, place.index, place.generation, place.name) + parts + nonce
    return associated + AESGCM(key).encrypt(nonce, value, associated)


def parse_envelope(data: bytes, place: Place) -> Envelope:
    """The file ``data`` of ``place``.

    1. It has the format, and says that it is this secret's, in this slot, of this generation.

    Raises:
        IdentityError: it does not (1).
    """
    if len(data) < _HEADER.size:
        raise _damaged(place)
    magic, kind, index, generation, name = _HEADER.unpack_from(data)
    if magic != _MAGIC or kind not in {IN_NV, SEALED}:
        raise _damaged(place)
    if (index, generation, name) != (place.index, place.generation, place.name):  # 1
        raise IdentityError(f"the file {place.file} is another secret's, or of another time", hint=_HINT)
    at = _HEADER.size
    sealed = None
    if kind == SEALED:
        public, private = _sized(data, at), _sized(data, at + len(_sized(data, at)))
        at += len(public) + len(private)
        try:
            sealed = read_sealed_files(public, private)
        except CredentialError as error:
            raise _damaged(place) from error
    nonce = data[at : at + _NONCE]
    if len(nonce) < _NONCE:
        raise _damaged(place)
    return Envelope(sealed, data[: at + _NONCE], nonce, data[at + _NONCE :], place.file)


def _sized(data: bytes, at: int) -> bytes:
    """The TPM2B at ``at``, with its size; cut short where the data ends."""
    return data[at : at + 2 + int.from_bytes(data[at : at + 2], "big")]


def _damaged(place: Place) -> IdentityError:
    return IdentityError(f"the file {place.file} is damaged", hint=_HINT)
