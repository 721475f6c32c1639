"""Walking over marshalled TPM structures, so that every size is checked before libtss2 sees it.

Numbers are big-endian; a TPM2B is a size of two bytes and as many bytes (TPM 2.0 Library part 2 rev 1.59, 10.4).
"""

from __future__ import annotations

from tpm_mtls.errors import EvidenceError


class Reader:
    """Reads ``data`` from its beginning.

    Every method raises EvidenceError where the data does not hold what is asked for; ``what`` names it there.
    """

    def __init__(self, data: bytes, what: str, *, hint: str) -> None:
        self._data = data
        self._what = what
        self._hint = hint
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise self._malformed()
        self._at += count
        return found

    def number(self, count: int, *, at_most: int | None = None) -> int:
        """The next ``count`` bytes as a number, no larger than ``at_most``."""
        found = int.from_bytes(self.take(count), "big")
        if at_most is not None and found > at_most:
            raise self._malformed()
        return found

    def sized(self, limit: int) -> bytes:
        """The content of the TPM2B that comes next, no longer than ``limit``."""
        return self.take(self.number(2, at_most=limit))

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data):
            raise self._malformed()

    def _malformed(self) -> EvidenceError:
        return EvidenceError(f"malformed {self._what}", hint=self._hint)
