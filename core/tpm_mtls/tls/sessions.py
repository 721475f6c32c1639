"""TLS sessions that a client context keeps, so that its connections resume instead of asking the TPM for a signature.

In memory only. A TLS 1.3 ticket is used once (RFC 8446, appendix C.4): the server sends new ones on each connection,
which OpenSSL sees when the program reads. A TLS 1.2 session is used again until its life ends, because servers send no
new one (RFC 5077, 3.3).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeAlias

from tpm_mtls.openssl import sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tpm_mtls.openssl.sessions import Session

Server: TypeAlias = tuple[str | None, int | None]
"""The name that the server's certificate was verified for, and its port where that is known."""

SERVERS = 64
"""Servers whose sessions are kept; a device talks to a few."""

SESSIONS = 8
"""Sessions kept for each server: so many connections at once can resume."""

_READS = 16
"""Reads during which a ticket is expected: servers send it right after the handshake or with their first data."""


class SessionCache:
    """Sessions by server, of one context; safe for several threads. A forked child begins with none.

    A session stands for the certificate that the client showed when it began. So each belongs to a ``generation`` of
    the context's certificate and key, and a newer generation ends the sessions of the older ones.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._generation = 0
        self._begin()

    def take(self, server: Server, generation: int) -> Session | None:
        """The newest session for ``server``, which no other connection gets then; none if there is none."""
        with self._of(generation) as servers:
            kept = servers.get(server)
            while kept:
                newest = kept.pop()
                if newest.ends > self._clock():
                    return newest
        return None

    def put(self, server: Server, generation: int, session: Session) -> None:
        """Keeps a session for a later connection to ``server``, if it is of the newest generation."""
        with self._of(generation) as servers:
            servers.setdefault(server, deque(maxlen=SESSIONS)).append(session)
            servers.move_to_end(server)
            if len(servers) > SERVERS:
                servers.popitem(last=False)

    def clear(self) -> None:
        """Forgets all sessions: the next connections make full handshakes."""
        with self._of(self._generation) as servers:
            servers.clear()

    def __len__(self) -> int:
        """Sessions that are kept, those included whose life has ended."""
        with self._of(self._generation) as servers:
            return sum(map(len, servers.values()))

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._servers: OrderedDict[Server, deque[Session]] = OrderedDict()

    @contextlib.contextmanager
    def _of(self, generation: int) -> Iterator[OrderedDict[Server, deque[Session]]]:
        if self._process != os.getpid():
            self._begin()  # another thread of the parent may have held the lock
        with self._lock:
            if generation > self._generation:
                self._generation = generation
                self._servers.clear()
            yield self._servers if generation == self._generation else OrderedDict()


class Resumption:
    """What one client connection has to do with the cache; used by one thread at a time, as the connection.

    The methods get the connection's ``_ssl._SSLSocket``; once it is closed they do nothing.

    Attributes:
        offers: whether the handshake offers a session, this or the caller's.
    """

    def __init__(self, cache: SessionCache, generation: int, context: int) -> None:
        """Prepares it.

        Args:
            cache: where sessions come from and go to.
            generation: of the certificate and key that the connection was made with.
            context: `id` of the connection's context.
        """
        self._cache = cache
        self._generation = generation
        self._context = context
        self._server: Server | None = None
        self._offered: Session | None = None
        self._reads = _READS
        self.offers = False

    def before_handshake(self, connection: object, server: Server) -> None:
        """Offers the server a session, unless the caller has given one. Further calls do nothing."""
        found = sessions.address(connection, self._context)
        if self._server is not None or found is None:
            return
        self._server = server
        self.offers = sessions.is_offering(found)
        if not self.offers and (taken := self._cache.take(server, self._generation)) is not None:
            taken.offer(found)
            self._offered, self.offers = taken, True

    def after_handshake(self, connection: object) -> None:
        """Keeps a session of TLS 1.2: it is there now."""
        found = sessions.address(connection, self._context)
        offered = self._offered
        if found is None:
            return
        if offered is not None and not offered.is_tls_1_3 and sessions.is_resumed(found):
            self._keep(offered)
        else:
            self._keep_new(found)

    def after_read(self, connection: object) -> None:
        """Keeps a ticket of TLS 1.3, once there is one."""
        if self._reads > 0 and (found := sessions.address(connection, self._context)) is not None:
            self._reads -= 1
            self._keep_new(found)

    def _keep_new(self, connection: int) -> None:
        session = sessions.resumable(connection, besides=self._offered)
        if session is not None:
            self._keep(session)

    def _keep(self, session: Session) -> None:
        self._reads = 0
        if self._server is not None:
            self._cache.put(self._server, self._generation, session)
