"""Handles of transient objects that the program sees and the TPM does not know."""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages.commands import FLUSH_CONTEXT
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import refused
from tpm_mtls_relay.messages.wire import HEADER, code_of, handles_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tpm_mtls_relay.loaded.objects import Objects

FIRST = 0x80A50000
"""TPMs and tpm2-abrmd number their objects upwards from 0x80000000, the kernel downwards from 0x80FFFFFF
(tpm2-space.c): hardly any comes by here. `aliases` gives one that does another number."""

_RANGE = 0x10000

_RC_PARAMETER_1_HANDLE = 0x1CB
_RC_REFERENCE_H0 = 0x910  # the first handle is of a transient object that is not there: part 2, 6.6.3


class VirtualHandles:
    """Those in use."""

    def __init__(self, objects: Objects, *, first: int = FIRST) -> None:
        """None is in use yet; none of what ``objects`` have loaded is ever given."""
        self._objects = objects
        self._first = first
        self._next = 0
        self._given = 0
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
            self._given = max(self._given, handle - self._first + 1)
            if handle not in self._used and handle not in self._objects.loaded:
                self._used.add(handle)
                return handle

    def has_ended(self, handle: int) -> bool:
        """Whether ``handle`` was given once, and stands for nothing any more."""
        was_given = self._first <= handle < self._first + self._given
        return was_given and handle not in self._used and handle not in self._objects.loaded

    def release(self, handle: int) -> None:
        """``handle`` is free."""
        self._used.discard(handle)


def refusal_where(command: bytes, is_unknown: Callable[[int], bool]) -> bytes | None:
    """The TPM's response to a ``command`` with a transient handle at which nothing is; none for all other commands.

    The TPM itself must not see our handles: the kernel's resource manager answers one that it did not give with EINVAL
    of the device (tpm2_map_command in tpm2-space.c), not with a response.
    """
    try:
        if code_of(command) == FLUSH_CONTEXT:
            return refused(_RC_PARAMETER_1_HANDLE) if is_unknown(Reader(command, HEADER.size).number(4)) else None
        for number, handle in enumerate(handles_of(command)):
            if is_unknown(handle):
                return refused(_RC_REFERENCE_H0 + number)
    except UnreadableError:
        return None
    return None
