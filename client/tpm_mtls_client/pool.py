"""urllib3's connection pools over our own `dial`: urllib3 speaks HTTP, and has no say in TLS.

urllib3 would otherwise write to the context, turn host-name checks off in some of its modes, and try an address after
the other without a common time limit. It reads no proxy from the environment unless told to, and is not told to.
"""

from __future__ import annotations

import errno
import os
import ssl
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from urllib3 import HTTPSConnectionPool
from urllib3.connection import HTTPSConnection

from tpm_mtls.errors import TpmMtlsError, UsageError
from tpm_mtls_client.dial import Peer, dial
from tpm_mtls_client.timing import current_budget

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPResponse

_HOSTS = 16
"""Hosts whose connections are kept; a device talks to one or two."""

_KEPT = 32
"""Connections kept for each host: a handshake costs a signature of the TPM, so as many as threads are likely."""


class Connection(HTTPSConnection):
    """An HTTPS connection whose TLS `dial` makes, within the time of the request that needs it."""

    def __init__(self, host: str, port: int, *, context: ssl.SSLContext, **settings: Any) -> None:  # noqa: ANN401 - urllib3's own settings are handed on
        super().__init__(host, port, **settings)
        self._context = context
        self._has_answered = False

    def connect(self) -> None:
        """Connects and verifies; called by the pool for a new connection, and for one that the peer had closed."""
        peer = Peer(self.host, self.port or self.default_port)
        self.sock = dial(self._context, peer, current_budget().connecting())
        self.is_verified = True
        self._has_answered = False

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own does to http.client's
        """The head of the answer.

        In TLS 1.3 a peer looks at our side of the handshake only now, and at no request before it has accepted that.

        Raises:
            KeyGoneError: it did not: the TPM had lost the key, which `IdentityContext` has loaded again by now.
            TpmMtlsError: the same for another reason of the own key's.
        """
        try:
            response = super().getresponse()
        except OSError as error:
            self._raise_own(error)
            raise
        self._has_answered = True
        return response

    def send(self, data: Any) -> None:  # noqa: ANN401 - what http.client sends
        """Sends; a peer that stops listening in the middle may have said why, which urllib3 then reads.

        Raises:
            KeyGoneError, TpmMtlsError: as `getresponse`.
        """
        try:
            super().send(data)
        except OSError as error:
            self._raise_own(error)
            if isinstance(error, ssl.SSLEOFError):
                raise BrokenPipeError(errno.EPIPE, "the peer stopped listening") from error
            raise

    def _raise_own(self, error: OSError) -> None:
        """Raises why the peer did not accept our side of the handshake, if the own key is why ``error`` happened."""
        if isinstance(error.__cause__, TpmMtlsError) and not self._has_answered:
            raise error.__cause__ from error


class _Pool(HTTPSConnectionPool):
    ConnectionCls = Connection


class Pools:
    """Kept connections by host and port; safe for several threads."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._closed = False
        self._forget()

    def send(
        self, peer: Peer, method: str, target: str, *, headers: dict[str, str], body: bytes | None
    ) -> BaseHTTPResponse:
        """Sends one request and returns the answer's head; its body is still to be read. Follows no redirect.

        Raises:
            KeyGoneError: the TPM had lost the key, which is loaded again; the peer has not taken the request.
            TpmMtlsError: no connection comes about (see `dial`), or this is closed.
            urllib3.exceptions.HTTPError: anything else; see `tpm_mtls_client.http_errors`.
        """
        return self._pool(peer).urlopen(
            method,
            target,
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )

    def close(self) -> None:
        """Closes the kept connections; those in use close when their request ends."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._pools: OrderedDict[Peer, _Pool] = OrderedDict()

    def _pool(self, peer: Peer) -> _Pool:
        if self._process != os.getpid():
            self._forget()  # a forked child must not write on its parent's connections
        with self._lock:
            if self._closed:
                raise UsageError("the client is closed", hint="make a new one: connect(identity)")
            pool = self._pools.get(peer)
            if pool is None:
                pool = self._pools[peer] = _Pool(peer.host, peer.port, maxsize=_KEPT, context=self._context)
            self._pools.move_to_end(peer)
            if len(self._pools) > _HOSTS:
                self._pools.popitem(last=False)  # its connections are closed once no thread uses it any more
            return pool
