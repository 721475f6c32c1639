"""The keys of a server's session tickets, which are changed regularly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tpm_mtls.openssl import tickets

if TYPE_CHECKING:
    from collections.abc import Callable

LIFETIME = 24 * 60 * 60
"""Seconds. A stolen key opens the TLS 1.2 connections that were resumed with it. Tickets live for two hours, and RFC
9325 (3.4) wants keys to be changed once a week at least, and to live twice as long as tickets."""


class TicketKeys:
    """Those of one server context. Tickets of earlier ones lead to a full handshake."""

    def __init__(self, ssl_ctx: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ssl_ctx = ssl_ctx
        self._clock = clock
        self._generation = 0
        self._end = 0.0
        tickets.set_up(ssl_ctx)

    def renew_when_due(self, generation: int) -> None:
        """Before a connection is made: new keys when the present ones are too old, or older than the certificate.

        Clients then see the new certificate, which may be there because the old one must not be believed any more.

        Args:
            generation: of the server's certificate and key.
        """
        if generation > self._generation or self._clock() >= self._end:
            self._generation = generation
            self._end = self._clock() + LIFETIME
            tickets.renew_keys(self._ssl_ctx)
