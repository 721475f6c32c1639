"""Handles of transient objects that the program sees and the TPM does not know."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls_relay.objects import Objects

FIRST = 0x80A50000
"""TPMs and tpm2-abrmd number their objects upwards from 0x80000000, the kernel downwards from 0x80FFFFFF
(tpm2-space.c): hardly any comes by here. `aliases` gives one that does another number."""

_RANGE = 0x10000


class VirtualHandles:
    """Those in use."""

    def __init__(self, objects: Objects, *, first: int = FIRST) -> None:
        """None is in use yet; none of what ``objects`` have loaded is ever given."""
        self._objects = objects
        self._first = first
        self._next = 0
        self._used: set[int] = set()

    def __contains__(self, handle: int) -> bool:
        return handle in self._used

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._used))

    def new(self) -> int:
        """A handle that was not in use, and not lately."""
        while True:
            handle = self._first + self._next
            self._next = (self._next + 1) % _RANGE
            if handle not in self._used and handle not in self._objects.loaded:
                self._used.add(handle)
                return handle

    def release(self, handle: int) -> None:
        """``handle`` is free."""
        self._used.discard(handle)
