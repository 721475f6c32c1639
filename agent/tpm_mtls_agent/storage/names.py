"""What stands for a secret's name outside of the TPM: keyed hashes, which only this device can compute. Pure.

The key exists sealed by the TPM, and in the memory of the agent that had it unsealed at its start.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from tpm_mtls.authorization import Secret

_SIZE: Final = 32
_LABEL: Final = 8  # bytes: two of 256 names have the same label once in 10^14 devices


@dataclass(frozen=True)
class DeviceKeys:
    """The two secrets of an agent's folder.

    Attributes:
        root: what the keyed hashes and the other keys are made with, 32 bytes.
        authorization: authorization value of the NV indices, 32 bytes.
    """

    root: bytes = field(repr=False)
    authorization: Secret

    @classmethod
    def generate(cls) -> DeviceKeys:
        """New ones."""
        return cls.unpack(secrets.token_bytes(2 * _SIZE))

    @classmethod
    def unpack(cls, data: bytes) -> DeviceKeys:
        """Those that `pack` made ``data`` of.

        Raises:
            ValueError: it did not.
        """
        if len(data) != 2 * _SIZE:
            raise ValueError("keys of another size")
        return cls(data[:_SIZE], Secret(data[_SIZE:]))

    def pack(self) -> bytes:
        """Both in a row, 64 bytes: to be sealed."""
        return self.root + self.authorization.value

    def name(self, name: bytes) -> bytes:
        """The keyed hash of a secret's name, 32 bytes: HMAC-SHA-256."""
        return self._mac(b"tpm-mtls name", name)

    def label(self, name: bytes) -> str:
        """The keyed hash of a secret's name, as logs show it: the first bytes of `name`, hex."""
        return self.name(name)[:_LABEL].hex()

    def tag(self, data: bytes) -> bytes:
        """What proves that this agent wrote ``data`` into the TPM, 32 bytes: HMAC-SHA-256."""
        return self._mac(b"tpm-mtls record", data)

    @property
    def encryption_key(self) -> bytes:
        """What encrypts the content of NV indices, 32 bytes."""
        return self._mac(b"tpm-mtls encryption", b"")

    def _mac(self, purpose: bytes, data: bytes) -> bytes:
        return hmac.digest(self.root, purpose + b"\0" + data, hashlib.sha256)
