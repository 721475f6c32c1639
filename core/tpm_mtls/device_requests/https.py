"""HTTPS: one request and its whole answer, in bounded time; and what can go wrong on the way.

No TPM is used here but by the TLS context, if its key is in one.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError

from tpm_mtls.device_requests.messages import Answer
from tpm_mtls.errors import (
    CertificateExpiredError,
    CertificateNotYetValidError,
    HandshakeError,
    PeerUntrustedError,
    TpmMtlsError,
)
from tpm_mtls.tls.verification import HAS_EXPIRED, NOT_YET_VALID, refusal_reason

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from urllib3.response import HTTPResponse

    from tpm_mtls.device_requests.messages import Request, Server, Timeouts

_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}=[!#-+\--:<-\[\]-~]{0,512}")  # RFC 6265, 4.1.1
_COOKIES_LIMIT = 4


class HttpsTransport:
    """One connection to ``server``, whose TLS certificate ``context`` verifies; a context manager.

    It is opened by the first request, and again by the next one where the server has closed it.
    """

    def __init__(self, server: Server, context: ssl.SSLContext, timeouts: Timeouts) -> None:
        self._server = server
        self._timeouts = timeouts
        self._connection = HTTPSConnection(server.host, server.port, timeout=timeouts.step, ssl_context=context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def send(self, request: Request) -> Answer:
        """As `Transport.send`."""
        connection = self._connection
        overdue = threading.Event()
        watch = threading.Timer(self._timeouts.exchange, _cut, (connection, overdue))
        watch.daemon = True
        watch.start()
        try:
            connection.request(
                request.method,
                self._server.base + request.path,
                request.body,
                {"User-Agent": "tpm-mtls", **request.headers},
                preload_content=False,
                decode_content=False,
            )
            answer = _receive(connection.getresponse(), request.limit)
            if overdue.is_set():  # an answer without a length ends where it was cut
                raise TimeoutError
        except (OSError, HTTPError, http.client.HTTPException) as error:
            raise self._error(error, late=overdue.is_set() or isinstance(error, TimeoutError)) from error
        finally:
            watch.cancel()
            watch.join()  # it knows the connection, and so must not be the one that frees context and key
        return answer

    def _error(self, error: Exception, *, late: bool) -> TpmMtlsError:
        if isinstance(error.__cause__, TpmMtlsError):
            return error.__cause__  # the own key did not sign: see `tpm_mtls.tls`
        if isinstance(error, ssl.SSLError):
            return self._tls_error(error)
        return self._server.unreachable("did not answer in time" if late else _reason(error))

    def _tls_error(self, error: ssl.SSLError) -> TpmMtlsError:
        where = str(self._server)
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._verification_error(error, where)
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return self._server.unreachable("ended the connection")
        return HandshakeError(
            f"the TLS connection to {where} failed: {(error.reason or str(error)).lower().replace('_', ' ')}",
            hint=f"does it speak TLS 1.3, and is it the port of {self._server.role}?",
            host=self._server.host,
        )

    def _verification_error(self, error: ssl.SSLCertVerificationError, where: str) -> TpmMtlsError:
        if error.verify_code == NOT_YET_VALID:
            return CertificateNotYetValidError(
                f"the TLS certificate of {where} is not yet valid by this device's clock",
                hint="set the clock right; see: date -u",
            )
        if error.verify_code == HAS_EXPIRED:
            return CertificateExpiredError(
                f"the TLS certificate of {where} has expired by this device's clock",
                hint=f"is the clock right (date -u)? else {self._server.role} needs a new one",
            )
        found = refusal_reason(error)
        return PeerUntrustedError(
            f"the TLS certificate of {where} is not trusted: {found.text}", hint=found.hint, host=self._server.host
        )


def _receive(response: HTTPResponse, limit: int) -> Answer:
    """The whole answer, or as much of its body as it takes to be refused as too large."""
    body = b""
    # to the end of the file: only there urllib3 notices that less came than Content-Length promised
    while len(body) <= limit and (chunk := response.read(limit + 1 - len(body))):
        body += chunk
    found = (_COOKIE.match(value) for value in response.headers.getlist("Set-Cookie"))
    return Answer(
        status=response.status,
        content_type=response.headers.get("Content-Type"),
        retry_after=response.headers.get("Retry-After"),
        cookies=tuple(cookie[0] for cookie in found if cookie)[:_COOKIES_LIMIT],
        body=body,
    )


def _cut(connection: HTTPSConnection, overdue: threading.Event) -> None:
    """Ends a connection under the reader's feet: it then reads an end of file."""
    overdue.set()
    # During the handshake there is no socket yet that could be cut; it ends by its own timeout.
    if connection.sock is not None:
        with suppress(OSError):
            # the plain socket's method: ssl.SSLSocket.shutdown would also take the TLS object away from the reader
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    if isinstance(error, NameResolutionError):
        return "cannot be found: its name does not resolve"
    cause = error.__cause__ if isinstance(error, NewConnectionError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return f"cannot be reached: {cause.strerror.lower()}"
    return "ended the connection in the middle of its answer"
