"""Reading structures out of TPM messages: big-endian numbers and sized buffers (TPM 2.0 Library part 2, 4.10)."""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError


class Reader:
    """Takes ``data`` apart from ``offset`` on.

    Every method raises `UnreadableError` where the data ends too early.
    """

    __slots__ = ("_data", "offset")

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self._data = data
        self.offset = offset

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        end = self.offset + size
        if end > len(self._data):
            raise UnreadableError(f"{size} bytes are announced, {len(self._data) - self.offset} are there")
        taken = self._data[self.offset : end]
        self.offset = end
        return taken

    def number(self, size: int) -> int:
        """An unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """The content of a TPM2B: two bytes of length, then as many bytes."""
        return self.take(self.number(2))

    def sized_long(self) -> bytes:
        """The same with four bytes of length, as an authorization area has them."""
        return self.take(self.number(4))

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self.offset >= len(self._data)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self.offset)

    def end(self) -> None:
        """Nothing may be left.

        Raises:
            UnreadableError: something is.
        """
        if self.offset != len(self._data):
            raise UnreadableError(f"{len(self._data) - self.offset} bytes too many")
