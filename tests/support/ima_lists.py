"""IMA's measurement lists for tests: made as the kernel makes them."""

from __future__ import annotations

import hashlib
from typing import Literal

Order = Literal["little", "big"]


def sha1(data: bytes) -> bytes:
    """What the list has as digests of its entries."""
    return hashlib.sha1(data, usedforsecurity=False).digest()


def field(data: bytes, order: Order = "little") -> bytes:
    """One field of a template, with its size."""
    return len(data).to_bytes(4, order) + data


def digest_field(digest: bytes, algorithm: str = "sha256", *, kind: str = "") -> bytes:
    """The content of d-ng, or with a ``kind`` of d-ngv2."""
    return kind.encode() + (b":" if kind else b"") + algorithm.encode() + b":\0" + digest


def name_field(path: str) -> bytes:
    """The content of n-ng."""
    return path.encode() + b"\0"


def entry(
    template: str, *fields: bytes, pcr: int = 10, order: Order = "little", violation: bool = False, digest: bytes = b""
) -> bytes:
    """An entry of a template with sizes."""
    data = b"".join(field(each, order) for each in fields)
    digest = digest or (bytes(20) if violation else sha1(data))
    return pcr.to_bytes(4, order) + digest + field(template.encode(), order) + field(data, order)


def file_entry(path: str, content: bytes = b"", *, pcr: int = 10, violation: bool = False) -> bytes:
    """An entry of the template ima-ng about a file."""
    measured = digest_field(bytes(20) if violation else hashlib.sha256(content).digest())
    return entry("ima-ng", measured, name_field(path), pcr=pcr, violation=violation)


def oldest_entry(path: str, digest: bytes, *, pcr: int = 10) -> bytes:
    """An entry of the template ima, which has no sizes."""
    hashed = sha1(digest + path.encode().ljust(256, b"\0"))
    return pcr.to_bytes(4, "little") + hashed + field(b"ima") + digest + field(path.encode())
