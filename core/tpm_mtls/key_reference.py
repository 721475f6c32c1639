"""Key references: the one string by which everything names a key.

A path to a PEM file (``TSS2 PRIVATE KEY``, or a software key) or ``handle:0x81000100``: what ``openssl -key`` accepts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tpm_mtls.errors import KeyReferenceError, PemError
from tpm_mtls.files import read_capped

PERSISTENT_FIRST = 0x81000000
PERSISTENT_LAST = 0x817FFFFF
"""Persistent objects of the owner: TPM 2.0 Library part 2, 7.4; Registry of Reserved TPM 2.0 Handles, table 2."""

_TSS2_LABEL = b"TSS2 PRIVATE KEY"
_SOFTWARE_LABELS = (b"PRIVATE KEY", b"EC PRIVATE KEY", b"RSA PRIVATE KEY", b"ENCRYPTED PRIVATE KEY")
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[A-Za-z0-9+/=\s:,-]*?-----END \1-----")


@dataclass(frozen=True)
class PersistentHandle:
    """A key at a persistent handle of the TPM."""

    handle: int

    def __str__(self) -> str:
        """The reference as ``openssl -key`` takes it."""
        return f"handle:{self.handle:#010x}"


@dataclass(frozen=True)
class KeyFile:
    """A key in a PEM file."""

    path: Path

    def __str__(self) -> str:
        """The reference as ``openssl -key`` takes it."""
        return str(self.path)

    def is_tss2(self) -> bool:
        """Whether the file holds a ``TSS2 PRIVATE KEY``; false for a software key.

        Raises:
            StorageError: it cannot be read.
            PemError: it is oversized, truncated or holds no private key.
        """
        return pem_key_label(read_capped(self.path), str(self.path)) == _TSS2_LABEL


KeyReference: TypeAlias = PersistentHandle | KeyFile


def parse_key_reference(text: str) -> KeyReference:
    """The key that ``text`` names; it is not looked for.

    Raises:
        KeyReferenceError: empty, or a handle that is no persistent handle.
    """
    if not text:
        raise KeyReferenceError("the key reference is empty", hint="name a PEM file or a handle like handle:0x81000100")
    scheme, separator, rest = text.partition(":")
    if not separator or scheme != "handle":
        return KeyFile(Path(text.removeprefix("file:")))
    return PersistentHandle(parse_handle(rest))


def parse_handle(text: str) -> int:
    """The persistent handle that ``text`` gives in hexadecimal, with or without 0x.

    Raises:
        KeyReferenceError: not a number, or not in the owner's persistent range 0x81000000 to 0x817FFFFF.
    """
    if not re.fullmatch(r"(0[xX])?[0-9A-Fa-f]{8}", text):
        raise KeyReferenceError(f"not a handle: {text[:40]!r}", hint="handles look like 0x81000100")
    handle = int(text, 16)
    if not PERSISTENT_FIRST <= handle <= PERSISTENT_LAST:
        raise KeyReferenceError(
            f"{handle:#010x} is not a persistent handle of the owner",
            hint=f"use one from {PERSISTENT_FIRST:#010x} to {PERSISTENT_LAST:#010x}, for example 0x81000100",
        )
    return handle


def pem_key_label(data: bytes, name: str) -> bytes:
    """The label of the first private-key block in PEM ``data`` (a certificate may stand before it).

    Raises:
        PemError: there is none, or it is cut off; ``name`` says where in the message.
    """
    for match in _PEM_BLOCK.finditer(data):
        label = match.group(1)
        if label == _TSS2_LABEL or label in _SOFTWARE_LABELS:
            return label
    if b"PRIVATE KEY-----" in data:
        raise PemError(f"{name} is cut off or damaged", hint="copy the file again, or make a new key")
    raise PemError(f"{name} holds no private key in PEM form", hint="expected a TSS2 PRIVATE KEY or a software key")
