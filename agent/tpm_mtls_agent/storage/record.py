"""What an NV index of the agent holds: a small value, or the key of the file in which a larger one is. Pure.

    format (1 byte), kind (1), bytes of the content (2), generation (8), the name's keyed hash, its first 8 bytes,
    tag (8), content (encrypted), zeros up to the index's size

The tag is a keyed hash over the NV index, the whole keyed hash of the name and all the rest. So whoever can write the
index (the owner of the TPM, for one with a policy) cannot make a value up or put another secret's there, and a write
that a power cut tore is recognised. The zeros leave nothing of an older value behind.

The TPM lets nobody read who may not; that the content is encrypted all the same (AES-256-CTR, by a key of the device
keys) is for whoever reads the memory past the TPM: a simulated one's state file, or an opened chip. The counter begins
with tag and generation, a synthetic initialization vector (RFC 5297, 2.6): no two contents have the same.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from tpm_mtls.errors import IdentityError
from tpm_mtls_agent.storage.slots import SIZES

if TYPE_CHECKING:
    from tpm_mtls_agent.storage.names import DeviceKeys

FORMAT: Final = 1
INLINE: Final = 0
"""The content is the value."""
KEY: Final = 1
"""The content is the AES-256 key of the file of this generation (`tpm_mtls_agent.storage.envelope`)."""

KEY_SIZE: Final = 32

_HEADER: Final = struct.Struct(">BBHQ8s8s")
_SHORT: Final = 8

VALUE_LIMIT: Final = SIZES[-1] - _HEADER.size
"""Bytes of the largest value that is in an NV index itself: 740."""

KEY_RECORD: Final = _HEADER.size + KEY_SIZE
"""Bytes of a record with a key: it fits into every index."""


@dataclass(frozen=True)
class Record:
    """A record.

    Attributes:
        kind: `INLINE` or `KEY`.
        generation: grows with each value of this name.
        content: the value, or the key.
    """

    kind: int
    generation: int
    content: bytes = field(repr=False)


def record_size(value_size: int) -> int:
    """Bytes of the record for a value of ``value_size`` bytes: with the value itself, if that is possible."""
    return _HEADER.size + value_size if value_size <= VALUE_LIMIT else KEY_RECORD


def encode_record(keys: DeviceKeys, index: int, name: bytes, record: Record, size: int) -> bytes:
    """``record`` of the secret with the keyed hash ``name``, for the NV index ``index`` of ``size`` bytes."""
    tag = _tag(keys, index, name, record)
    header = _HEADER.pack(FORMAT, record.kind, len(record.content), record.generation, name[:_SHORT], tag)
    return (header + _crypt(keys, tag, record.generation, record.content)).ljust(size, b"\0")


def decode_record(keys: DeviceKeys, index: int, name: bytes, data: bytes) -> Record:
    """The record in ``data``, which ``index`` holds for the secret with the keyed hash ``name``.

    1. It is of this format, and as long as it says.
    2. This agent wrote it, here, for this secret, and all of it is there.

    Raises:
        IdentityError: a check failed.
    """
    if len(data) < _HEADER.size:
        raise _damaged(index, "it is too short")
    version, kind, length, generation, _, tag = _HEADER.unpack_from(data)
    encrypted = data[_HEADER.size : _HEADER.size + length]
    if version != FORMAT or kind not in {INLINE, KEY} or len(encrypted) != length:  # 1
        raise _damaged(index, "it is of another format")
    record = Record(kind, generation, _crypt(keys, tag, generation, encrypted))
    if not hmac.compare_digest(tag, _tag(keys, index, name, record)):  # 2
        raise _damaged(index, "this agent did not write it for this secret, or not all of it is there")
    return record


def _tag(keys: DeviceKeys, index: int, name: bytes, record: Record) -> bytes:
    head = struct.pack(">IBBQ", index, FORMAT, record.kind, record.generation)
    return keys.tag(head + name + record.content)[:_SHORT]


def _crypt(keys: DeviceKeys, tag: bytes, generation: int, content: bytes) -> bytes:
    """Encrypts, or decrypts."""
    counter = tag + generation.to_bytes(8, "big")
    return Cipher(AES(keys.encryption_key), CTR(counter)).encryptor().update(content)


def _damaged(index: int, why: str) -> IdentityError:
    return IdentityError(
        f"the secret's value in NV {index:#010x} cannot be used: {why}",
        hint="somebody else wrote there, or the power was cut in the midst of it; set the secret again",
    )
