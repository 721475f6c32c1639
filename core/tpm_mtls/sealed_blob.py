"""The file that ``tpm-mtls seal`` writes: text, in up to three blocks of PEM (RFC 7468). Pure.

1. ``TSS2 PRIVATE KEY``, of the type sealed data: what a TPM sealed, in the standard's form, which other tools read.
2. ``TPM-MTLS SEALED RECORD``: JSON that says which policy must hold (with the PCRs' values, so that it can be told
   which one differs) and under which storage root key it was sealed. Files of other tools have none.
3. ``TPM-MTLS SEALED DATA``: only for secrets above 128 bytes, more than a TPM seals. A nonce of 12 bytes, then the
   secret, encrypted by AES-256-GCM with a key that is what the TPM sealed; the object's Name is authenticated with it.

What is sealed for the third block begins with `_MARK`, so that a file whose third block was taken away, or put in, is
refused: it would give a key away as the secret, or another secret than the one that was sealed.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tpm_mtls.errors import CredentialError, PemError
from tpm_mtls.files import read_capped, storage_errors
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import Assertion, Hex, Name, check_assertions
from tpm_mtls.policy.key_file import policy_commands
from tpm_mtls.structures.sealed import SEALED_LIMIT, SealedObject, sealed_object
from tpm_mtls.structures.tss2_file import Kind, PolicyCommand, Tss2File, parse_tss2_file

if TYPE_CHECKING:
    from pathlib import Path

SECRET_LIMIT: Final = 64 * 1024
"""Bytes of a secret; what is larger is better encrypted with a key that is sealed."""

FILE_LIMIT: Final = 256 * 1024
"""Bytes of a file: secret and policy in base64 have 88 KiB each, the TPM's own part 2."""

FORMAT: Final = 1

_TSS2, _RECORD, _DATA = "TSS2 PRIVATE KEY", "TPM-MTLS SEALED RECORD", "TPM-MTLS SEALED DATA"
_BLOCK: Final = re.compile(rb"\s*-----BEGIN ([A-Z0-9 -]{1,40})-----([A-Za-z0-9+/=\s]*)-----END \1-----\s*")
_MARK: Final = b"tpm-mtls envelope 1\0"
_KEY_SIZE: Final = 32
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int = FORMAT
    name: Name
    srk: Hex
    policy: tuple[Assertion, ...] = ()


@dataclass(frozen=True)
class SealedBlob:
    """What a file holds; no secret itself.

    Attributes:
        sealed: what the TPM sealed.
        parent: handle of the key under which it did.
        empty_auth: whether it has no authorization value.
        srk: Name of that key; none where another tool wrote the file.
        policy: what must hold; empty where nothing must, or the file does not say it.
        ciphertext: the third block.
        rsa_parent: whether the parent, if it is the owner hierarchy, means its standard primary key with RSA-2048.
    """

    sealed: SealedObject
    parent: int
    empty_auth: bool
    srk: bytes | None = None
    policy: tuple[Assertion, ...] = ()
    ciphertext: bytes | None = None
    rsa_parent: bool = False

    def encode(self) -> bytes:
        """The file."""
        commands: tuple[PolicyCommand, ...] = ()
        with suppress(CredentialError):  # alternatives: the standard's fields cannot say them, the record does
            commands = policy_commands(self.policy)
        tss2 = Tss2File(
            Kind.SEALED,
            self.sealed.public,
            self.sealed.private,
            parent=self.parent,
            empty_auth=self.empty_auth,
            policy=commands,
        )
        record = _Record(name=self.sealed.public.name.hex(), srk=(self.srk or b"").hex(), policy=self.policy)
        blocks = [tss2.to_pem(), _pem(_RECORD, msgspec.json.encode(record))]
        if self.ciphertext is not None:
            blocks.append(_pem(_DATA, self.ciphertext))
        return b"".join(blocks)


def parse_blob(data: bytes, name: str = "the blob") -> SealedBlob:
    """What the file ``data`` holds; ``name`` says where it came from, for the errors.

    1. It has the blocks above, each once, and nothing else; the first one is there.
    2. The first holds sealed data. (Some tools say loadable key of it: tpm2_encodeobject.)
    3. The record is of that object, and its policy, if it has any, leads to the object's authPolicy.

    Whether the third block belongs to them is told by `open_payload`.

    Raises:
        PemError: a check failed, or it is oversized.
    """
    blocks = _blocks(data, name)  # 1
    tss2 = _parse_tss2(blocks[_TSS2][0], name)
    sealed = sealed_object(tss2.public, tss2.private)  # 2
    ciphertext = _content(blocks, _DATA, name)
    if ciphertext is not None and not 0 < len(ciphertext) - _NONCE_SIZE - _TAG_SIZE <= SECRET_LIMIT:
        raise _damaged(name, "its secret has no possible size")
    encoded = _content(blocks, _RECORD, name)
    if encoded is None:
        rsa = tss2.rsa_parent
        return SealedBlob(sealed, tss2.parent, tss2.empty_auth, ciphertext=ciphertext, rsa_parent=rsa)
    record = _parse_record(encoded, name)
    if record.name != sealed.public.name.hex():  # 3
        raise _damaged(name, "its record is of something else")
    if record.policy and policy_digest(record.policy) != sealed.public.policy:
        raise _damaged(name, "its record has another policy than what the TPM sealed")
    srk = bytes.fromhex(record.srk) or None
    return SealedBlob(sealed, tss2.parent, tss2.empty_auth, srk, record.policy, ciphertext)


def find_blob(path: Path) -> SealedBlob | None:
    """The blob in the file ``path``; none if there is no file, or it has no record, as one of ours has.

    Raises:
        PemError: it is damaged.
        StorageError: it cannot be read.
    """
    with storage_errors(path, "read"):
        if not path.is_file() or path.stat().st_size > FILE_LIMIT:
            return None
    data = read_capped(path, limit=FILE_LIMIT)
    return parse_blob(data, str(path)) if f"-----BEGIN {_RECORD}-----".encode() in data else None


@dataclass(frozen=True)
class Payload:
    """What a TPM shall seal for a secret of any size: itself, or the key by which it is encrypted.

    Attributes:
        data: for `tpm_mtls.tpm.sealing.Sealing.seal`.
        secret: the secret, if ``data`` is its key.
    """

    data: bytes
    secret: bytes | None

    def ciphertext(self, name: bytes) -> bytes | None:
        """The third block, for the object with the Name ``name``; none if there is none."""
        if self.secret is None:
            return None
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return nonce + AESGCM(self.data[len(_MARK) :]).encrypt(nonce, self.secret, _MARK + name)


def payload_for(secret: bytes) -> Payload:
    """What is to be sealed for ``secret``."""
    if len(secret) <= SEALED_LIMIT and not secret.startswith(_MARK):
        return Payload(secret, None)
    return Payload(_MARK + secrets.token_bytes(_KEY_SIZE), secret)


def open_payload(data: bytes, blob: SealedBlob, name: str = "the blob") -> bytes:
    """The secret, of which the TPM gave back ``data``.

    Raises:
        PemError: the third block is missing, is another blob's, or damaged.
    """
    if blob.ciphertext is None:
        if data.startswith(_MARK):
            raise _damaged(name, "the block with the secret is missing")
        return data
    if not data.startswith(_MARK) or len(data) != len(_MARK) + _KEY_SIZE:
        raise _damaged(name, "a block does not belong to it")
    nonce, rest = blob.ciphertext[:_NONCE_SIZE], blob.ciphertext[_NONCE_SIZE:]
    try:
        return AESGCM(data[len(_MARK) :]).decrypt(nonce, rest, _MARK + blob.sealed.public.name)
    except InvalidTag as error:
        raise _damaged(name, "the block with the secret is damaged, or of another blob") from error


def _blocks(data: bytes, name: str) -> dict[str, re.Match[bytes]]:
    if len(data) > FILE_LIMIT:
        raise _damaged(name, f"larger than {FILE_LIMIT} bytes")
    found: dict[str, re.Match[bytes]] = {}
    at = 0
    while at < len(data):
        match = _BLOCK.match(data, at)
        if match is None:
            raise _damaged(name, "it is cut off, or has something else in it")
        label = match[1].decode()
        if label not in {_TSS2, _RECORD, _DATA} or label in found:
            raise _damaged(name, f"it has a block {label} that does not belong there")
        found[label] = match
        at = match.end()
    if _TSS2 not in found:
        raise _damaged(name, f"it has no block {_TSS2}")
    return found


def _parse_tss2(block: bytes, name: str) -> Tss2File:
    try:
        return parse_tss2_file(block, name, Kind.SEALED)
    except PemError:
        with suppress(PemError):
            found = parse_tss2_file(block, name, Kind.LOADABLE)
            if found.public.algorithm == "keyedhash":
                return found
        raise


def _parse_record(data: bytes, name: str) -> _Record:
    try:
        record = msgspec.json.decode(data, type=_Record)
        if record.policy:
            check_assertions(record.policy, name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, CredentialError) as error:
        raise _damaged(name, f"its record is damaged: {str(error).lower()}") from error
    if record.format != FORMAT:
        raise PemError(f"{name} has format {record.format}, expected {FORMAT}", hint="use the tpm-mtls that made it")
    return record


def _content(blocks: dict[str, re.Match[bytes]], label: str, name: str) -> bytes | None:
    if label not in blocks:
        return None
    try:
        return base64.b64decode(b"".join(blocks[label][2].split()), validate=True)
    except binascii.Error as error:
        raise _damaged(name, f"its block {label} is no base64") from error


def _pem(label: str, content: bytes) -> bytes:
    text = base64.b64encode(content)
    body = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
    return b"".join((f"-----BEGIN {label}-----\n".encode(), body, f"-----END {label}-----\n".encode()))


def _damaged(name: str, what: str) -> PemError:
    return PemError(f"{name} is no usable sealed data: {what}", hint="copy the file again; tpm-mtls seal makes them")
