"""The EST server's endpoints (RFC 7030, RFC 8951), and the CRLs' distribution points. HTTPS is the caller's part."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from aiohttp import web

from tpm_mtls import est
from tpm_mtls.errors import CsrRefusedError, EvidenceError, EvidenceRefusedError, PemError, TpmMtlsError
from tpm_mtls_pki import crl
from tpm_mtls_pki.est_nonce import NonceEndpoint
from tpm_mtls_pki.issuance import Credentials, Issued
from tpm_mtls_pki.policy import Reason, Refusal, Waiting
from tpm_mtls_pki.profiles import ISSUING_CRL, ROOT_CRL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tpm_mtls_pki.evidence import Challenge
    from tpm_mtls_pki.exchange import ExchangeStore
    from tpm_mtls_pki.issuance import Registrar

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_TIMEOUT: Final = 10.0
"""Seconds for a request's body, which is 2 KiB."""

RETRY_AFTER: Final = 60
"""Seconds until a client asks again whether its request was approved."""

_CRL_TYPE = "application/pkix-crl"  # RFC 5280, 4.2.1.13
_TOO_LARGE = "the request is too large"
_REALM = 'Basic realm="tpm-mtls", charset="UTF-8"'
_LOGGED = 80  # characters of what a client sent that go into one log line
_KEY_REASONS = {Reason.KEY_OF_CA, Reason.KEY_OF_ANOTHER, Reason.KEY_COMPROMISED}
_EVIDENCE_REASONS = {
    Reason.EVIDENCE_REFUSED,
    Reason.TPM_OF_ANOTHER,
    Reason.DEVICE_OF_ANOTHER,
    Reason.KEY_MOVED,
    Reason.DENIED,
    Reason.QUEUE_FULL,
}

_log = logging.getLogger(__name__)


class EstServer:
    """The endpoints, over a `Registrar`."""

    def __init__(
        self, registrar: Registrar, exchanges: ExchangeStore[Challenge], *, body_timeout: float = BODY_TIMEOUT
    ) -> None:
        """Makes the endpoints; ``exchanges`` keeps what is open between a nonce and its CSR."""
        self._registrar = registrar
        self._body_timeout = body_timeout
        self._nonces = NonceEndpoint(exchanges)
        authority = registrar.authority
        self._cacerts = est.encode_certificates([authority.issuing, authority.root])
        self._csrattrs = est.encode_csrattrs()

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(middlewares=[_errors], client_max_size=est.BODY_LIMIT)
        application.on_response_prepare.append(_hide_software)
        application.add_routes(
            [
                web.get(est.CACERTS, self._get_cacerts),
                web.get(est.CSRATTRS, self._get_csrattrs),
                web.get(est.NONCE, self._get_nonce, allow_head=False),
                web.post(est.NONCE, self._post_nonce),
                web.post(est.SIMPLE_ENROLL, self._post_enroll),
                web.post(est.SIMPLE_REENROLL, self._post_reenroll),
                web.get(f"/crl/{ISSUING_CRL}", self._get_issuing_crl),
                web.get(f"/crl/{ROOT_CRL}", self._get_root_crl),
            ]
        )
        return application

    async def _get_cacerts(self, _: web.Request) -> web.Response:
        """RFC 7030, 4.1."""
        return _answer(self._cacerts, est.CERTIFICATES_TYPE)

    async def _get_csrattrs(self, _: web.Request) -> web.Response:
        """RFC 7030, 4.5."""
        return _answer(self._csrattrs, est.CSRATTRS_TYPE)

    async def _get_nonce(self, request: web.Request) -> web.Response:
        """Freshness draft, 5: without parameters."""
        return self._nonces.answer_plain(request)

    async def _post_nonce(self, request: web.Request) -> web.Response:
        """Freshness draft, 5: with parameters. What nobody can answer is a bad request, and opens nothing."""
        _check_type(request, est.NONCE_TYPE)
        try:
            return await self._nonces.answer(request, await self._read(request))
        except (EvidenceError, PemError) as error:
            _note(request, "refused", HTTPStatus.BAD_REQUEST, None, reason=str(error))
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")

    async def _post_enroll(self, request: web.Request) -> web.Response:
        """RFC 7030, 4.2.1."""
        return await self._enroll(request, renewal=False)

    async def _post_reenroll(self, request: web.Request) -> web.Response:
        """RFC 7030, 4.2.2."""
        return await self._enroll(request, renewal=True)

    async def _get_issuing_crl(self, _: web.Request) -> web.Response:
        return await self._crl("issuing")

    async def _get_root_crl(self, _: web.Request) -> web.Response:
        return await self._crl("root")

    async def _crl(self, name: Literal["root", "issuing"]) -> web.Response:
        newest = await asyncio.to_thread(self._newest_crl, name)
        if newest is None:
            raise web.HTTPNotFound
        return _answer(newest.der, _CRL_TYPE)

    def _newest_crl(self, name: Literal["root", "issuing"]) -> crl.StoredCrl | None:
        with self._registrar.authority.database.reading() as connection:
            return crl.newest(connection, name)

    async def _enroll(self, request: web.Request, *, renewal: bool) -> web.Response:
        _check_type(request, est.CSR_TYPE)
        credentials = _credentials(request)
        if isinstance(credentials, Refusal):
            return _refuse(request, credentials)
        try:
            body = await self._read(request)
        except web.HTTPRequestEntityTooLarge as error:  # only evidence makes a request large
            refusal = await self._refuse_unreadable(_TOO_LARGE, self._nonces.take(request))
            _note(request, "refused", error.status, None, reason=refusal.reason.value, check=refusal.check)
            raise
        challenge = self._nonces.take(request)  # whatever comes of this request: no other one can use it
        try:
            csr = est.decode_body(body)
            # in a thread: the database may wait for another process
            outcome = await asyncio.to_thread(
                self._registrar.enroll, credentials, csr, renewal=renewal, challenge=challenge
            )
        except (CsrRefusedError, PemError) as error:
            if challenge is None and credentials.are_shown:
                _note(request, "refused", HTTPStatus.BAD_REQUEST, credentials.user, reason=str(error))
                return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")
            # who asked for a nonce, or shows nothing else, tried to send evidence
            outcome = await self._refuse_unreadable(str(error), challenge)
        if isinstance(outcome, Refusal):
            return _refuse(request, outcome)
        if isinstance(outcome, Waiting):
            return _postpone(request, outcome)
        return _send(request, outcome)

    async def _refuse_unreadable(self, why: str, challenge: Challenge | None) -> Refusal:
        """Check 5 for a faulty request in which there should be evidence, and none can be found."""
        error = EvidenceRefusedError(why, hint="begin again with a new nonce", check=5)
        return await asyncio.to_thread(self._registrar.refuse_evidence, error, challenge)

    async def _read(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._body_timeout):
                return await request.read()
        except TimeoutError as error:
            raise web.HTTPRequestTimeout from error
        except web.HTTPRequestEntityTooLarge as error:
            raise web.HTTPRequestEntityTooLarge(est.BODY_LIMIT, text=f"{_TOO_LARGE}\n") from error


def _credentials(request: web.Request) -> Credentials | Refusal:
    """What the applicant shows: HTTP Basic (RFC 7617) and its TLS certificate."""
    ssl_object = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    certificate = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    header = request.headers.get("Authorization")
    if header is None:
        return Credentials(None, None, certificate)
    scheme, _, encoded = header.partition(" ")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return Refusal(Reason.NO_CREDENTIALS)
    user, colon, password = text.partition(":")
    if scheme.lower() != "basic" or not colon:
        return Refusal(Reason.NO_CREDENTIALS)
    return Credentials(user, password, certificate)


def _send(request: web.Request, issued: Issued) -> web.Response:
    decision = "issued-again" if issued.again else "issued"
    serial = f"{issued.certificate.serial_number:040x}"
    _note(
        request, decision, HTTPStatus.OK, issued.device, serial=serial, grounds=issued.grounds, ignored=issued.ignored
    )
    return _answer(est.encode_certificates(issued.certificates), f"{est.CERTIFICATES_TYPE}; smime-type=certs-only")


def _postpone(request: web.Request, waiting: Waiting) -> web.Response:
    """RFC 7030, 4.2.3: somebody must approve it first; the client asks again."""
    _note(request, "waiting", HTTPStatus.ACCEPTED, waiting.device, approval=waiting.number)
    headers = {"Retry-After": str(RETRY_AFTER)}
    return web.Response(status=HTTPStatus.ACCEPTED, text="the request waits for approval\n", headers=headers)


def _check_type(request: web.Request, media_type: str) -> None:
    if not est.is_media_type(request.headers.get("Content-Type"), media_type):
        raise web.HTTPUnsupportedMediaType(text=f"send a {media_type}\n")


def _refuse(request: web.Request, refusal: Refusal) -> web.Response:
    """One answer for all reasons of a kind: whoever tries learns nothing from it; the reason is in the log."""
    if refusal.reason in _KEY_REASONS:
        status, text = HTTPStatus.BAD_REQUEST, "the key is refused"
    elif refusal.reason in _EVIDENCE_REASONS:
        status, text = HTTPStatus.FORBIDDEN, "the request is refused"
    elif request.path == est.SIMPLE_ENROLL:
        status, text = HTTPStatus.UNAUTHORIZED, "authorization is needed: evidence, a bootstrap token or a certificate"
    else:
        status, text = HTTPStatus.FORBIDDEN, "the current certificate is needed"
    check = {} if refusal.check is None else {"check": refusal.check}
    _note(request, "refused", status, refusal.device, reason=refusal.reason.value, **check)
    headers = {"WWW-Authenticate": _REALM} if status == HTTPStatus.UNAUTHORIZED else {}
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def _note(request: web.Request, decision: str, status: int, device: str | None, **facts: object) -> None:
    """One line for each decision, as JSON: what came from outside cannot forge a line."""
    name = device[:_LOGGED] if device else None
    line: dict[str, object] = {
        "path": request.path,
        "remote": request.remote,
        "status": int(status),
        "decision": decision,
        "device": name,
    }
    line.update(facts)
    _log.info("%s", msgspec.json.encode(line).decode())


def _answer(body: bytes, media_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": media_type})


async def _hide_software(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "tpm-mtls"


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors of the CA (its store does not answer, its own certificate has ended) are its own affair."""
    try:
        return await handler(request)
    except TpmMtlsError as error:
        _log.error("%s %s: %s", request.method, request.path, error)
        return web.Response(
            status=HTTPStatus.SERVICE_UNAVAILABLE, text="try again later\n", headers={"Retry-After": "30"}
        )
