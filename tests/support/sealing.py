"""Sealed objects without a TPM, for tests of what holds them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.structures import parse_public_area
from tpm_mtls.structures.sealed import SealedObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion

_KEYEDHASH, _SHA256, _NULL = b"\x00\x08", b"\x00\x0b", b"\x00\x10"
_FIXED, _USER_WITH_AUTH, _NO_DA = 0x12, 0x40, 0x400


def sealed_object_of(seed: str, policy: Sequence[Assertion] = ()) -> SealedObject:
    """Made of ``seed``: TPMT_PUBLIC of sealed data (part 2, 12.2.4), and something at the place of the private part."""
    digest = policy_digest(policy) if policy else b""
    attributes = _FIXED | _NO_DA | (0 if policy else _USER_WITH_AUTH)
    unique = hashlib.sha256(seed.encode()).digest()
    parts = (attributes.to_bytes(4, "big"), _sized(digest), _NULL, _sized(unique))
    public = parse_public_area(_KEYEDHASH + _SHA256 + b"".join(parts))
    return SealedObject(public, hashlib.sha512(seed.encode()).digest())


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content
