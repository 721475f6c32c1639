"""Walking over the structures of firmware. Numbers are little-endian there, unlike in a TPM's own structures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.errors import EvidenceError

if TYPE_CHECKING:
    import struct


class Cursor:
    """Reads ``data`` from its beginning; ``what`` names it in the EvidenceError where it ends too early or too late."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.position = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.position

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        found = self._data[self.position : self.position + count]
        if len(found) != count:
            raise self.malformed(f"it ends after {len(self._data)} bytes, in the middle of something")
        self.position += count
        return found

    def number(self, size: int) -> int:
        """The next ``size`` bytes as a number."""
        return int.from_bytes(self.take(size), "little")

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        """The numbers of the structure ``form`` that comes next."""
        return form.unpack(self.take(form.size))

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise self.malformed(f"{self.left} bytes too many")

    def malformed(self, why: str) -> EvidenceError:
        """The error to raise where something is wrong."""
        return EvidenceError(
            f"malformed {self._what}: {why}",
            hint="copy the log again, as it is: /sys/kernel/security/tpm0/binary_bios_measurements",
        )
