"""The device's side of EST (RFC 7030, RFC 8951), and of its freshness nonces: what is asked, and what the answers mean.

    with client.exchange() as exchange:
        response = exchange.nonce(request, now=now)
        …                                               # evidence that answers it
        certificates = exchange.enroll(csr, Shown(token, advice=…), now=now)

A call makes one attempt. What another attempt may cure (nobody answers, 202, 502, 503, 504) is returned as `Later`, for
`tpm_mtls_keygen.patience`; everything else is raised and stays as it is however often one asks.
"""

from __future__ import annotations

import base64
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls import est, freshness
from tpm_mtls.device_requests import Answer, Request, Timeouts, Transport
from tpm_mtls.device_requests.https import HttpsTransport
from tpm_mtls.errors import (
    EvidenceError,
    PeerUnreachableError,
    PemError,
    RequestRefusedError,
    ResponseError,
    TokenRefusedError,
    TpmMtlsError,
)
from tpm_mtls_keygen.est_url import EstUrl
from tpm_mtls_keygen.patience import Later, retry_after

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from cryptography import x509

    from tpm_mtls_keygen.bootstrap_token import BootstrapToken

_OK = 200
_ACCEPTED = 202
_TRY_LATER = {502: "bad gateway", 503: "unavailable", 504: "gateway timeout"}  # RFC 9110, 15.6
_NOT_AUTHORIZED = {401, 403}
_NOT_OFFERED = {404, 405, 501}
_BAD_REQUEST = 400

_REASON_SHOWN = 200  # characters of an error answer's first line
_WAIT = "run the same command again later, or let it wait: --wait SECONDS"


@dataclass(frozen=True)
class Shown:
    """By what the CA shall let the device enroll.

    Attributes:
        token: the bootstrap token, if there is one.
        advice: what to do if the CA refuses the evidence that the CSR carries; none where it carries none.
    """

    token: BootstrapToken | None = None
    advice: str | None = None


class EstClient:
    """Asks the EST server at ``url``, whose TLS certificate ``context`` verifies.

    Raises:
        UsageError: ``url`` is no EST server's URL.
    """

    def __init__(self, url: str, context: ssl.SSLContext, *, timeouts: Timeouts | None = None) -> None:
        self.url = EstUrl.parse(url)
        self._context = context
        self._timeouts = timeouts or Timeouts()

    @contextmanager
    def exchange(self) -> Iterator[EstExchange]:
        """Requests that belong together: over one connection, as long as the server keeps it, and with its cookies."""
        with HttpsTransport(self.url.server, self._context, self._timeouts) as transport:
            yield EstExchange(self.url, transport)

    def ca_certificates(self, *, now: datetime) -> tuple[x509.Certificate, ...] | Later:
        """As `EstExchange.ca_certificates`, over a connection of its own."""
        with self.exchange() as exchange:
            return exchange.ca_certificates(now=now)

    def enroll(self, csr: bytes, token: BootstrapToken, *, now: datetime) -> tuple[x509.Certificate, ...] | Later:
        """As `EstExchange.enroll`, over a connection of its own, with a token alone."""
        with self.exchange() as exchange:
            return exchange.enroll(csr, Shown(token), now=now)


class EstExchange:
    """Requests that belong together, sent by ``transport`` to the server at ``url``.

    Attributes:
        cookies: what the server gave to be known by again (``name=value``).
    """

    def __init__(self, url: EstUrl, transport: Transport, *, cookies: Sequence[str] = ()) -> None:
        self.cookies = tuple(cookies)
        self._url = url
        self._transport = transport

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
        answer = self._send(Request("GET", "/cacerts", None, {"Accept": est.CERTIFICATES_TYPE}))
        if isinstance(answer, Later):
            return answer
        return self._postponed(answer, "cacerts", now) or self._certificates(answer, "cacerts")

    def nonce(self, request: freshness.NonceRequest, *, now: datetime) -> freshness.NonceResponse | Later:
        """A nonce, and the credential that ``request`` asks for; the next request of this exchange is to use it.

        draft-ietf-lamps-attestation-freshness-08, 5.

        Raises:
            RequestRefusedError: it answered with an HTTP error; 404 and its like mean that it takes no evidence.
            PeerUntrustedError, HandshakeError, ResponseError, …: as `ca_certificates`.
        """
        headers = {"Accept": est.NONCE_TYPE, "Content-Type": est.NONCE_TYPE}
        answer = self._send(Request("POST", "/nonce", freshness.encode_request(request), headers))
        if isinstance(answer, Later):
            return answer
        if answer.status in _NOT_OFFERED:
            raise RequestRefusedError(
                f"{self._url} answered {answer.status} to nonce: it verifies no TPM{_explanation(answer)}",
                hint="is that the EST server's URL? if it is, enroll with a token: --token-file",
                status=answer.status,
            )
        if later := self._postponed(answer, "nonce", now):
            return later
        self.cookies = answer.cookies
        self._check(answer, "nonce", est.NONCE_TYPE)
        try:
            return freshness.decode_response(answer.body)
        except EvidenceError as error:
            raise self._unusable("nonce", error) from error

    def enroll(self, csr: bytes, shown: Shown, *, now: datetime) -> tuple[x509.Certificate, ...] | Later:
        """The certificates that answer ``csr`` (DER, PKCS #10), authenticated by what is ``shown`` (RFC 7030, 4.2).

        Nothing about them is verified.

        Raises:
            TokenRefusedError: 401 or 403 to a token.
            RequestRefusedError: 400, 401 or 403 to evidence; another HTTP error.
            PeerUntrustedError, HandshakeError, ResponseError, …: as `ca_certificates`.
        """
        headers = {}
        if shown.token is not None:
            user = base64.b64encode(f"{shown.token.device}:".encode() + shown.token.secret.value)
            headers["Authorization"] = f"Basic {user.decode()}"
        return self._post_csr("/simpleenroll", csr, shown, headers, now)

    def reenroll(self, csr: bytes, shown: Shown, *, now: datetime) -> tuple[x509.Certificate, ...] | Later:
        """The certificates that answer ``csr`` (DER); the TLS connection shows the current one (RFC 7030, 4.2.2).

        Raises:
            RequestRefusedError: an HTTP error; 401 and 403 where the CA does not accept the current certificate.
            PeerUntrustedError, HandshakeError, ResponseError, …: as `ca_certificates`.
        """
        return self._post_csr("/simplereenroll", csr, shown, {}, now)

    def _post_csr(
        self, path: str, csr: bytes, shown: Shown, headers: dict[str, str], now: datetime
    ) -> tuple[x509.Certificate, ...] | Later:
        headers |= {"Accept": est.CERTIFICATES_TYPE, "Content-Type": est.CSR_TYPE}
        if self.cookies:
            headers["Cookie"] = "; ".join(self.cookies)
        answer = self._send(Request("POST", path, est.encode_body(csr), headers))
        if isinstance(answer, Later):
            return answer
        self._check_authorized(answer, path, shown)
        name = path.removeprefix("/")
        return self._postponed(answer, name, now) or self._certificates(answer, name)

    def _send(self, request: Request) -> Answer | Later:
        try:
            return self._transport.send(request)
        except PeerUnreachableError as error:
            return Later(error)

    def _check_authorized(self, answer: Answer, path: str, shown: Shown) -> None:
        """Raises where the CA says that what was shown to it will not do; it does not say why."""
        status, reason = answer.status, _explanation(answer)
        if shown.advice is not None and status in {_BAD_REQUEST, *_NOT_AUTHORIZED}:
            both = "bootstrap token or the evidence" if shown.token else "evidence"
            raise RequestRefusedError(
                f"{self._url} refused the {both} of this device's TPM ({status}){reason}",
                hint=shown.advice,
                status=status,
            )
        if status not in _NOT_AUTHORIZED:
            return
        if path == "/simplereenroll":
            raise RequestRefusedError(
                f"{self._url} refused the current certificate ({status}){reason}",
                hint="it may be revoked, or the device changed: see its audit log; a new token enrolls anew",
                status=status,
            )
        raise TokenRefusedError(
            f"{self._url} refused the bootstrap token ({status}){reason}",
            hint="it may be wrong, expired or used by another key; make one: tpm-mtls pki token create",
            status=status,
        )

    def _postponed(self, answer: Answer, name: str, now: datetime) -> Later | None:
        """The `Later` that an answer asks for, none for 200; raises for the other statuses."""
        status = answer.status
        if status == _OK:
            return None
        after = retry_after(answer.retry_after, now=now)
        if status == _ACCEPTED:
            return Later(RequestRefusedError(f"{self._url} has not decided yet", hint=_WAIT, status=status), after)
        reason = _explanation(answer)
        if status in _TRY_LATER:
            text = f"{self._url} answered {status} {_TRY_LATER[status]}{reason}"
            return Later(RequestRefusedError(text, hint=_WAIT, status=status), after)
        raise RequestRefusedError(
            f"{self._url} answered {status} to {name}{reason}",
            hint="is that the EST server's URL? its log says more",
            status=status,
        )

    def _certificates(self, answer: Answer, name: str) -> tuple[x509.Certificate, ...]:
        self._check(answer, name, est.CERTIFICATES_TYPE)
        try:
            return est.decode_certificates(answer.body)
        except PemError as error:
            raise self._unusable(name, error) from error

    def _check(self, answer: Answer, name: str, media_type: str) -> None:
        if not est.is_media_type(answer.content_type, media_type):
            raise ResponseError(
                f"{self._url} answered {name} with {_printable(answer.content_type or 'no Content-Type')} "
                f"instead of {media_type}",
                hint="is that the EST server's URL? a proxy or a portal may have answered",
                host=self._url.host,
            )

    def _unusable(self, name: str, error: TpmMtlsError) -> ResponseError:
        return ResponseError(
            f"{self._url} gave no usable answer to {name}: {error}", hint=error.hint, host=self._url.host
        )


def _explanation(answer: Answer) -> str:
    """The first line of an error answer in plain text, as ": …"; nothing else of it is shown."""
    if not est.is_media_type(answer.content_type, "text/plain"):
        return ""
    line = answer.body.decode("ascii", "replace").strip().partition("\n")[0]
    return f": {_printable(line)}" if line else ""


def _printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:_REASON_SHOWN].strip().removesuffix(".")
