"""The device's side of EST (RFC 7030, RFC 8951): ``cacerts`` and ``simpleenroll`` over TLS, one connection each.

A call makes one attempt. What another attempt may cure (nobody answers, 202, 502, 503, 504) is returned as `Later`, for
`tpm_mtls_keygen.patience`; everything else is raised and stays as it is however often one asks.
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError

from tpm_mtls import est
from tpm_mtls.errors import (
    CertificateExpiredError,
    CertificateNotYetValidError,
    HandshakeError,
    PeerUnreachableError,
    PeerUntrustedError,
    PemError,
    RequestRefusedError,
    ResponseError,
    TokenRefusedError,
    TpmMtlsError,
)
from tpm_mtls_keygen.est_url import EstUrl
from tpm_mtls_keygen.patience import Later, retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cryptography import x509
    from urllib3.response import HTTPResponse

    from tpm_mtls_keygen.bootstrap_token import BootstrapToken

_OK = 200
_ACCEPTED = 202
_TRY_LATER = {502: "bad gateway", 503: "unavailable", 504: "gateway timeout"}  # RFC 9110, 15.6
_TOKEN_REFUSED = {401, 403}

_REASON_SHOWN = 200  # characters of an error answer's first line

# OpenSSL's X509_V_ERR_ numbers (x509_vfy.h)
_NOT_YET_VALID = 9
_HAS_EXPIRED = 10
_HOSTNAME_MISMATCH = 62
_IP_ADDRESS_MISMATCH = 64


@dataclass(frozen=True)
class Timeouts:
    """In seconds.

    Attributes:
        step: for connecting, for the TLS handshake, and for the next bytes of an answer.
        exchange: for a request and its whole answer, however slowly that trickles.
    """

    step: float = 20.0
    exchange: float = 60.0


class EstClient:
    """Asks the EST server at ``url``, whose TLS certificate ``context`` verifies.

    Raises:
        UsageError: ``url`` is no EST server's URL.
    """

    def __init__(self, url: str, context: ssl.SSLContext, *, timeouts: Timeouts | None = None) -> None:
        self.url = EstUrl.parse(url)
        self._context = context
        self._timeouts = timeouts or Timeouts()

    def ca_certificates(self, *, now: datetime) -> tuple[x509.Certificate, ...] | Later:
        """The CA's certificates (RFC 7030, 4.1), in no particular order; that they lead to the anchor is not verified.

        Args:
            now: what the clock says, for a Retry-After that names a date.

        Raises:
            PeerUntrustedError, CertificateExpiredError, CertificateNotYetValidError: of the server's TLS certificate.
            HandshakeError: TLS failed otherwise.
            RequestRefusedError: it answered with an HTTP error.
            ResponseError: its answer is none of EST, or too large.
        """
        return self._ask("GET", "/cacerts", now=now)

    def enroll(self, csr: bytes, token: BootstrapToken, *, now: datetime) -> tuple[x509.Certificate, ...] | Later:
        """The certificates that answer ``csr`` (DER, PKCS #10), authenticated by ``token`` (RFC 7030, 4.2).

        Nothing about them is verified.

        Raises:
            TokenRefusedError: 401 or 403.
            PeerUntrustedError, HandshakeError, RequestRefusedError, ResponseError, …: as `ca_certificates`.
        """
        user = base64.b64encode(f"{token.device}:".encode() + token.secret.value)
        headers = {"Authorization": f"Basic {user.decode()}", "Content-Type": est.CSR_TYPE}
        return self._ask("POST", "/simpleenroll", now=now, body=est.encode_body(csr), headers=headers)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        now: datetime,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[x509.Certificate, ...] | Later:
        try:
            answer = self._exchange(method, path, body, headers or {})
        except PeerUnreachableError as error:
            return Later(error)
        return self._read(answer, path.removeprefix("/"), now)

    def _exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> _Answer:
        connection = HTTPSConnection(
            self.url.host, self.url.port, timeout=self._timeouts.step, ssl_context=self._context
        )
        overdue = threading.Event()
        watch = threading.Timer(self._timeouts.exchange, _cut, (connection, overdue))
        watch.daemon = True
        watch.start()
        try:
            connection.request(
                method,
                self.url.base + path,
                body,
                {"Accept": est.CERTIFICATES_TYPE, "Connection": "close", "User-Agent": "tpm-mtls", **headers},
                preload_content=False,
                decode_content=False,
            )
            answer = _receive(connection.getresponse())
            if overdue.is_set():  # an answer without a length ends where it was cut
                raise TimeoutError
        except ssl.SSLError as error:
            raise self._tls_error(error) from error
        except (OSError, HTTPError, http.client.HTTPException) as error:
            late = overdue.is_set() or isinstance(error, TimeoutError)
            raise self._unreachable("did not answer in time" if late else _reason(error)) from error
        finally:
            watch.cancel()
            connection.close()
        return answer

    def _read(self, answer: _Answer, name: str, now: datetime) -> tuple[x509.Certificate, ...] | Later:
        if answer.status != _OK:
            return self._refused(answer, name, now)
        media_type = answer.headers.get("Content-Type")
        if not est.is_media_type(media_type, est.CERTIFICATES_TYPE):
            raise ResponseError(
                f"{self.url} answered {name} with {_printable(media_type or 'no Content-Type')} "
                f"instead of {est.CERTIFICATES_TYPE}",
                hint="is that the EST server's URL? a proxy or a portal may have answered",
                host=self.url.host,
            )
        try:
            return est.decode_certificates(answer.body)
        except PemError as error:
            raise ResponseError(
                f"{self.url} gave no usable answer to {name}: {error}", hint=error.hint, host=self.url.host
            ) from error

    def _refused(self, answer: _Answer, name: str, now: datetime) -> Later:
        """The `Later` that an answer asks for; raises for the other statuses."""
        status = answer.status
        after = retry_after(answer.headers.get("Retry-After"), now=now)
        reason = _explanation(answer)
        if status == _ACCEPTED:
            hint = "run the same command again later, or let it wait: --wait SECONDS"
            return Later(RequestRefusedError(f"{self.url} has not decided yet", hint=hint, status=status), after)
        if status in _TRY_LATER:
            text = f"{self.url} answered {status} {_TRY_LATER[status]}{reason}"
            hint = "run the same command again later, or let it wait: --wait SECONDS"
            return Later(RequestRefusedError(text, hint=hint, status=status), after)
        if status in _TOKEN_REFUSED and name != "cacerts":
            raise TokenRefusedError(
                f"{self.url} refused the bootstrap token ({status}){reason}",
                hint="it may be wrong, expired or used by another key; make one: tpm-mtls pki token create",
                status=status,
            )
        raise RequestRefusedError(
            f"{self.url} answered {status} to {name}{reason}",
            hint="is that the EST server's URL? its log says more",
            status=status,
        )

    def _unreachable(self, what: str) -> PeerUnreachableError:
        return PeerUnreachableError(
            f"the CA at {self.url} {what}",
            hint="check the URL, the network and whether the CA runs; --wait SECONDS keeps trying",
            host=self.url.host,
        )

    def _tls_error(self, error: ssl.SSLError) -> TpmMtlsError:
        where = f"the CA at {self.url}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._verification_error(error, where)
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return self._unreachable("ended the connection")
        return HandshakeError(
            f"the TLS connection to {where} failed: {(error.reason or str(error)).lower().replace('_', ' ')}",
            hint="does it speak TLS 1.3, and is it the CA's port?",
            host=self.url.host,
        )

    def _verification_error(self, error: ssl.SSLCertVerificationError, where: str) -> TpmMtlsError:
        said = error.verify_message.lower().removesuffix(".")
        if error.verify_code == _NOT_YET_VALID:
            return CertificateNotYetValidError(
                f"the TLS certificate of {where} is not yet valid by this device's clock",
                hint="set the clock right; see: date -u",
            )
        if error.verify_code == _HAS_EXPIRED:
            return CertificateExpiredError(
                f"the TLS certificate of {where} has expired by this device's clock",
                hint="is the clock right (date -u)? else the CA needs a new one",
            )
        if error.verify_code in {_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH}:
            hint = "use the name in its certificate as the URL's host"
        else:
            hint = "is the --trust file the root certificate of that CA? if it is, somebody else answers there"
        return PeerUntrustedError(f"{where} is not trusted: {said}", hint=hint, host=self.url.host)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def _receive(response: HTTPResponse) -> _Answer:
    """The whole answer, or as much of its body as it takes to be refused as too large."""
    body = b""
    # to the end of the file: only there urllib3 notices that less came than Content-Length promised
    while len(body) <= est.BODY_LIMIT and (chunk := response.read(est.BODY_LIMIT + 1 - len(body))):
        body += chunk
    return _Answer(response.status, response.headers, body)


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


def _explanation(answer: _Answer) -> str:
    """The first line of an error answer in plain text, as ": …"; nothing else of it is shown."""
    if not est.is_media_type(answer.headers.get("Content-Type"), "text/plain"):
        return ""
    line = answer.body.decode("ascii", "replace").strip().partition("\n")[0]
    return f": {_printable(line)}" if line else ""


def _printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:_REASON_SHOWN].strip().removesuffix(".")
