"""Half-open enrollments: what the CA remembers between the nonce that it gave and the CSR that uses it.

In memory on purpose: it lives for minutes, and a nonce that a restart forgot is asked for again.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

LIFETIME: Final = 300.0
"""Seconds that a nonce may be used: a slow TPM needs ten of them to make its keys."""

LIMIT: Final = 8192
"""Exchanges at a time; a line of devices that boots together has some thousands."""

BUDGET: Final = 16 * 1024 * 1024
"""Bytes that they may remember together; an EK certificate and its issuer have 2 KiB."""

_TICKET_BYTES = 32
_TICKET_LENGTH = 43  # characters of 32 bytes in base64url

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Content]):
    content: Content
    source: str
    size: int
    expires_at: float


class ExchangeStore(Generic[Content]):
    """Exchanges that wait for their CSR: each is found once, for a while, by its own client only.

    A client is known again by the ticket that it was given (an opaque cookie), or by its connection. Who holds
    neither cannot find an exchange: a ticket has 256 random bits, and is looked up by its digest, so that the time
    that it takes says nothing about the tickets there are.

    When there is no room, the oldest exchange of the source that has the most goes: whoever opens thousands pushes out
    its own. Not for several threads: it belongs to the event loop's.
    """

    def __init__(
        self, clock: Callable[[], float], *, lifetime: float = LIFETIME, limit: int = LIMIT, budget: int = BUDGET
    ) -> None:
        """Makes an empty store.

        Args:
            clock: seconds that only grow (`time.monotonic`).
            lifetime: seconds that an exchange may be found.
            limit: how many exchanges there may be.
            budget: how many bytes they may remember together.
        """
        self.lifetime = lifetime
        self._clock = clock
        self._limit = limit
        self._budget = budget
        self._entries: dict[bytes, _Entry[Content]] = {}  # oldest first, which is also the order of their end
        self._by_source: dict[str, dict[bytes, None]] = {}
        self._by_connection: WeakKeyDictionary[object, bytes] = WeakKeyDictionary()
        self._bytes = 0

    def __len__(self) -> int:
        """How many exchanges are open."""
        self.sweep()
        return len(self._entries)

    def open(self, content: Content, *, source: str, size: int, connection: object | None = None) -> str:
        """Remembers ``content`` and returns the ticket for it.

        Args:
            content: what is needed when the CSR comes.
            source: who asks, for the fair share: a network address.
            size: how many bytes ``content`` has, about.
            connection: the TLS connection; its newest exchange is found by it, too.
        """
        self.sweep()
        ticket = secrets.token_urlsafe(_TICKET_BYTES)
        key = _digest(ticket)
        while self._entries and (len(self._entries) >= self._limit or self._bytes + size > self._budget):
            self._remove(self._victim())
        self._entries[key] = _Entry(content, source, size, self._clock() + self.lifetime)
        self._by_source.setdefault(source, {})[key] = None
        self._bytes += size
        if connection is not None:
            self._by_connection[connection] = key
        return ticket

    def take(self, ticket: str | None, *, connection: object | None = None) -> Content | None:
        """The exchange of this client, which nobody finds again; none if there is none (any more).

        A client that shows a ticket has that ticket's exchange or none: its connection does not count.
        """
        self.sweep()
        if ticket is not None:
            key = _digest(ticket) if len(ticket) == _TICKET_LENGTH and ticket.isascii() else None
        else:
            key = self._by_connection.pop(connection, None) if connection is not None else None
        if key is None or key not in self._entries:
            return None
        return self._remove(key).content

    def sweep(self) -> None:
        """Forgets the exchanges that have ended."""
        now = self._clock()
        while self._entries:
            key = next(iter(self._entries))
            if now < self._entries[key].expires_at:
                return
            self._remove(key)

    def _victim(self) -> bytes:
        greatest = max(self._by_source.values(), key=len)  # the one that came first of equals
        return next(iter(greatest))

    def _remove(self, key: bytes) -> _Entry[Content]:
        entry = self._entries.pop(key)
        self._bytes -= entry.size
        mine = self._by_source[entry.source]
        del mine[key]
        if not mine:
            del self._by_source[entry.source]
        return entry


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode()).digest()
