"""Public areas of NV indices (TPMS_NV_PUBLIC): what an index is, and its Name.

TPM 2.0 Library part 2 rev 1.59, 13.4 (TPMA_NV), 13.5 (TPMS_NV_PUBLIC); part 1, 16 (Names).
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Final

from tpm_mtls.errors import PemError

_SHA256: Final = 0x000B
_TYPE: Final = 0x000000F0  # TPM_NT: what is no ordinary index counts, or holds bits or a PIN
_FIXED: Final = 14  # bytes of all fields but the policy


class NvAttribute(enum.IntFlag):
    """TPMA_NV of an ordinary index; the names are the specification's."""

    OWNERWRITE = 0x00000002
    AUTHWRITE = 0x00000004
    POLICYWRITE = 0x00000008
    OWNERREAD = 0x00020000
    AUTHREAD = 0x00040000
    POLICYREAD = 0x00080000
    NO_DA = 0x02000000
    WRITTEN = 0x20000000


@dataclass(frozen=True)
class NvPublic:
    """An ordinary NV index with nameAlg SHA-256.

    Attributes:
        index: its handle.
        size: bytes of its data area.
        attributes: TPMA_NV, without WRITTEN.
        policy: authPolicy, 32 bytes; empty for none.
        written: whether it was ever written, which is part of its Name.
    """

    index: int
    size: int
    attributes: NvAttribute
    policy: bytes = b""
    written: bool = True

    @property
    def data(self) -> bytes:
        """The marshalled TPMS_NV_PUBLIC."""
        attributes = self.attributes | (NvAttribute.WRITTEN if self.written else NvAttribute(0))
        return b"".join(
            (
                self.index.to_bytes(4, "big"),
                _SHA256.to_bytes(2, "big"),
                int(attributes).to_bytes(4, "big"),
                len(self.policy).to_bytes(2, "big"),
                self.policy,
                self.size.to_bytes(2, "big"),
            )
        )

    @property
    def name(self) -> bytes:
        """The index's Name: nameAlg and the digest of `data`, 34 bytes."""
        return _SHA256.to_bytes(2, "big") + hashlib.sha256(self.data).digest()


def parse_nv_public(data: bytes) -> NvPublic:
    """What the marshalled TPMS_NV_PUBLIC ``data`` says.

    Raises:
        PemError: malformed, or of an index that is not ordinary, or with another nameAlg than SHA-256.
    """
    if len(data) < _FIXED or len(data) != _FIXED + (policy := int.from_bytes(data[10:12], "big")):
        raise _unusable("malformed")
    attributes = int.from_bytes(data[6:10], "big")
    if data[4:6] != _SHA256.to_bytes(2, "big") or attributes & _TYPE:
        raise _unusable("it is no ordinary index with SHA-256")
    return NvPublic(
        index=int.from_bytes(data[:4], "big"),
        size=int.from_bytes(data[-2:], "big"),
        attributes=NvAttribute(attributes & ~NvAttribute.WRITTEN),
        policy=data[12 : 12 + policy],
        written=bool(attributes & NvAttribute.WRITTEN),
    )


def _unusable(what: str) -> PemError:
    return PemError(f"unusable NV index: {what}", hint="see what is there: tpm2_nvreadpublic")
