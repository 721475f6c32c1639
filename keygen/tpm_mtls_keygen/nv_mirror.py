"""A copy of the identity in the TPM's NV memory: after the disk was wiped it comes back, without enrolling again.

At 0x01500000 (where EVE keeps a device's certificate), in a block of eight indices for each identity folder. What is
kept needs no secrecy: certificates, the record, and key blobs that only this TPM can load. It is not to be trusted
either: whoever owns the TPM can write there. So the trust anchor is never taken from it, and all else is verified.

Each index begins with a header: `_MAGIC`, the number of the part and of all parts (1 byte each), bytes and SHA-256 of
the whole (4 and 32 bytes). What a power cut left half written is recognised by the digest, and is no mirror.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.attestation_key import AttestationKey, load_attestation_key
from tpm_mtls.certificates import load_certificates
from tpm_mtls.errors import CredentialError, HandleOccupiedError, IdentityError, TpmMemoryError
from tpm_mtls.files import read_capped
from tpm_mtls.identity import CERTIFICATE, FORMAT, KEY, IdentityRecord
from tpm_mtls.key_reference import PersistentHandle, parse_key_reference
from tpm_mtls.policy.document import PolicyDocument, check_assertions
from tpm_mtls.policy.files import find_policy
from tpm_mtls.structures import parse_tss2_pem

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.tpm import Tpm

FIRST_INDEX: Final = 0x01500000
LAST_INDEX: Final = 0x015000FF

_BLOCK: Final = 8  # indices: on the smallest chips 12 KiB, and an identity has 2 to 4
_MAGIC: Final = b"TPMMTLS\x01"
_HEADER: Final = struct.Struct(">8sBBI32s")
_LIMIT: Final = 32 * 1024  # bytes, unpacked
_NO_ROOM: Final = 0x14B  # TPM_RC_NV_SPACE
_ROUND: Final = 128  # a renewed certificate, a few bytes longer, shall fit without a new index


class Mirror(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is needed to come back.

    Attributes:
        folder: the identity folder's absolute path.
        record: ``identity.json``.
        key: ``device.key.pem``; none for a persistent key.
        attestation_key: ``attestation.key.json``, if there is one.
        certificates: the leaf and its issuers (DER), without the anchor.
        policy: the key's policy, if it has one. What an operator signed for it is not kept here.
    """

    folder: str
    record: IdentityRecord
    key: bytes | None
    attestation_key: AttestationKey | None
    certificates: tuple[bytes, ...]
    policy: PolicyDocument | None = None


@dataclass(frozen=True)
class Place:
    """Where in the NV memory an identity folder's mirror is, or can be.

    Attributes:
        first: the block's first index.
        mirror: what is there; none if nothing is, or only a half-written one.
        indices: those of the block that are in use.
        others: devices whose mirrors are in other blocks.
    """

    first: int
    mirror: Mirror | None
    indices: tuple[int, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    number: int
    count: int
    size: int
    digest: bytes
    content: bytes


def find_place(tpm: Tpm, folder: Path) -> Place:
    """The block for ``folder``: that with its mirror, else the first free one (one command, three or more per mirror).

    Raises:
        HandleOccupiedError: something that is no mirror is where the mirror would go; it stays.
    """
    used = [index for index in tpm.nv.indices(FIRST_INDEX) if index <= LAST_INDEX]
    others: list[str] = []
    free: list[Place] = []
    for first in range(FIRST_INDEX, LAST_INDEX + 1, _BLOCK):
        block = tuple(index for index in used if first <= index < first + _BLOCK)
        try:
            mirror = _assemble([_read_part(tpm, index) for index in block])
        except HandleOccupiedError:
            if not free:
                raise
            continue
        if mirror is None:
            free.append(Place(first, None, block))
        elif mirror.folder == str(folder.absolute()):
            return Place(first, mirror, block, tuple(others))
        else:
            others.append(mirror.record.device)
    if not free:
        raise HandleOccupiedError(
            f"all NV indices from {FIRST_INDEX:#010x} to {LAST_INDEX:#010x} are taken by other identities",
            hint="keep no copy of this one: --no-mirror",
            handle=LAST_INDEX,
        )
    return replace(free[0], others=tuple(others))


def read_mirror(folder: Path, record: IdentityRecord) -> Mirror:
    """The mirror of what ``folder`` holds, whose ``identity.json`` is ``record``.

    Raises:
        PemError, IdentityError: a file there is damaged.
        StorageError: it cannot be read.
    """
    return Mirror(
        folder=str(folder.absolute()),
        record=record,
        key=read_capped(folder / KEY) if record.key == KEY else None,
        attestation_key=load_attestation_key(folder),
        certificates=tuple(each.public_bytes(Encoding.DER) for each in load_certificates(folder / CERTIFICATE)),
        policy=find_policy(bytes.fromhex(record.key_name), [folder]),
    )


def store_mirror(tpm: Tpm, place: Place, mirror: Mirror) -> bool:
    """Writes ``mirror`` to ``place``, unless it is there already; returns whether it wrote.

    Killed anywhere, it leaves the old mirror, none, or the new one; the next run can write it again.

    Raises:
        TpmMemoryError: the NV memory is full.
        AuthorizationError: the owner hierarchy has another authorization value.
    """
    if place.mirror == mirror:
        return False
    packed = zlib.compress(msgspec.msgpack.encode(mirror), level=9)
    largest = tpm.nv.largest()
    room = largest - _HEADER.size
    count = -(-len(packed) // room)
    if count > _BLOCK:
        raise TpmMemoryError(
            f"the identity does not fit into the TPM's NV memory ({len(packed)} bytes)",
            hint="keep no copy of it there: --no-mirror",
            rc=_NO_ROOM,
        )
    used = list(place.indices)
    digest = hashlib.sha256(packed).digest()
    for number in range(count):
        data = _HEADER.pack(_MAGIC, number, count, len(packed), digest) + packed[number * room : (number + 1) * room]
        index = place.first + number
        if index in used and tpm.nv.describe(index).size < len(data):
            tpm.nv.remove(index)
            used.remove(index)
        if index not in used:
            tpm.nv.define(index, min(-(-len(data) // _ROUND) * _ROUND, largest))
        tpm.nv.write(index, data)
    for index in used:
        if index >= place.first + count:
            tpm.nv.remove(index)
    return True


def remove_mirror(tpm: Tpm, place: Place) -> None:
    """Removes the mirror at ``place``; killed anywhere, it leaves the mirror or none, and the next run can finish it.

    Raises:
        AuthorizationError: the owner hierarchy has another authorization value.
    """
    for index in reversed(place.indices):
        tpm.nv.remove(index)


def _read_part(tpm: Tpm, index: int) -> _Part | None:
    """The part at ``index``; none if nothing was written there yet."""
    about = tpm.nv.describe(index)
    if about.ours and not about.written:
        return None
    data = tpm.nv.read(index, limit=about.size, about=about) if about.ours else b""
    if about.size < _HEADER.size or not data.startswith(_MAGIC):
        raise HandleOccupiedError(
            f"the NV index {index:#010x}, where a copy of the identity goes, is occupied by something else",
            hint="find out whose it is: tpm2_nvreadpublic; or keep no copy: --no-mirror",
            handle=index,
        )
    _, number, count, size, digest = _HEADER.unpack_from(data)
    return _Part(number, count, size, digest, data[_HEADER.size :])


def _assemble(parts: list[_Part | None]) -> Mirror | None:
    """What ``parts`` (in the order of their indices) hold; none if they are no whole mirror."""
    first = parts[0] if parts else None
    if first is None:
        return None
    found = [part for part in parts if part is not None and part.digest == first.digest]
    if [part.number for part in found] != list(range(first.count)):
        return None
    packed = b"".join(part.content for part in found)[: first.size]
    if hashlib.sha256(packed).digest() != first.digest:
        return None
    return _unpack(packed)


def _unpack(packed: bytes) -> Mirror | None:
    """What the digest was right for, but may still have been written by anybody."""
    try:
        data = zlib.decompressobj().decompress(packed, _LIMIT)
        mirror = msgspec.msgpack.decode(data, type=Mirror)
        reference = parse_key_reference(mirror.record.key)
        if mirror.key is not None:
            parse_tss2_pem(mirror.key)
        if mirror.attestation_key is not None:
            mirror.attestation_key.check()
        if mirror.policy is not None:
            check_assertions(mirror.policy.policy, "the policy")
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, CredentialError, IdentityError):
        return None
    in_tpm = isinstance(reference, PersistentHandle)
    sound = mirror.record.format == FORMAT and bool(mirror.certificates)
    return mirror if sound and in_tpm == (mirror.key is None) and (in_tpm or mirror.record.key == KEY) else None
