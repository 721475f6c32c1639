"""What the backend answers, and to whom."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tpm_mtls.errors import CredentialError, StorageError
from tpm_mtls_server.http import Refusal, answer, connection_of
from tpm_mtls_server.logs import PATH_LIMIT, log
from tpm_mtls_server.peer import AnyPeer, DevicePeer, OperatorPeer, check_dates, identify
from tpm_mtls_server.revocation import CrlFile, Verdict
from tpm_mtls_server.telemetry import MESSAGE_LIMIT, TelemetryStore, read_message

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    Handler = Callable[[web.BaseRequest, DevicePeer], Awaitable[web.Response]]

RETRY_AFTER = {"Retry-After": "60"}
"""Seconds after which a client may ask again when the server cannot answer now."""


class Backend:
    """Answers requests whose TLS client certificate OpenSSL has verified.

    Each request, also on a kept connection and in a resumed session:

    1. The client certificate is one of our profiles for devices or operators (`peer.identify`; once per connection).
    2. It is valid now.
    3. Its CA has not revoked it; without a fresh CRL only ``/healthz`` answers.
    """

    def __init__(
        self,
        *,
        store: TelemetryStore,
        crl: CrlFile | None,
        own_expiry: Callable[[], datetime],
        clock: Callable[[], datetime],
        body_timeout: float,
    ) -> None:
        """Prepares the backend.

        Args:
            store: where telemetry goes.
            crl: the clients' CA's CRLs; none skips step 3.
            own_expiry: when the server's own certificate expires.
            clock: the time, in UTC.
            body_timeout: seconds that a request's body may take.
        """
        self._store = store
        self._crl = crl
        self._own_expiry = own_expiry
        self._clock = clock
        self._body_timeout = body_timeout
        self._routes: dict[str, dict[str, Handler]] = {
            "/healthz": {"GET": self._healthz},
            "/telemetry": {"POST": self._telemetry},
            "/whoami": {"GET": self._whoami},
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to ``request``, logged in one line."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        reason: str | None = None
        try:
            response = await self._answer(request)
        except Refusal as refusal:
            reason = str(refusal)
            response = refusal.response()
        except StorageError as error:
            log("storage error", level=logging.ERROR, error=str(error))
            reason = "the store is not available"
            response = Refusal(503, reason, headers=RETRY_AFTER).response()
        peer = connection_of(request).peer
        who: dict[str, Any] = {
            "operator" if isinstance(peer, OperatorPeer) else "device": peer.name if peer else None,
        }
        log(
            "request",
            **who,
            serial=peer.serial_hex if peer else None,
            method=request.method[:PATH_LIMIT],
            path=request.path[:PATH_LIMIT],
            status=response.status,
            ms=round((loop.time() - started) * 1000, 1),
            reason=reason,
        )
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        peer = self._admit(request)
        methods = self._routes.get(request.path)
        if methods is None:
            raise Refusal(404, "not found")
        handler = methods.get(request.method)
        if handler is None:
            raise Refusal(405, "method not allowed", headers={"Allow": ", ".join(methods)})
        if not isinstance(peer, DevicePeer):
            raise Refusal(403, "for devices only")
        return await handler(request, peer)

    def _admit(self, request: web.BaseRequest) -> AnyPeer:
        connection = connection_of(request)
        try:
            if connection.peer is None:
                certificate = _tls(request).getpeercert(binary_form=True)
                connection.peer = identify(certificate or b"")  # 1
            check_dates(connection.peer, now=self._clock())  # 2
        except CredentialError as error:
            raise Refusal(403, str(error), close=True) from error
        if self._crl is not None:
            self._check_revocation(connection.peer, self._crl, request.path)  # 3
        return connection.peer

    def _check_revocation(self, peer: AnyPeer, crl: CrlFile, path: str) -> None:
        verdict = crl.verdict(peer)
        if verdict is Verdict.REVOKED:
            raise Refusal(403, "certificate revoked", close=True)
        if verdict is Verdict.UNKNOWN and path != "/healthz":
            why = crl.problem() or "no CRL of the certificate's CA is there"
            raise Refusal(503, f"revocation status unknown: {why}", headers=RETRY_AFTER)

    async def _whoami(self, request: web.BaseRequest, peer: DevicePeer) -> web.Response:
        tls = _tls(request)
        cipher = tls.cipher()
        return answer(
            {
                "device": peer.device,
                "serial": peer.serial_hex,
                "not_after": f"{peer.not_after:%Y-%m-%dT%H:%M:%SZ}",
                "tls_version": tls.version(),
                "cipher": cipher[0] if cipher else None,
                "session_resumed": bool(tls.session_reused),
            }
        )

    async def _telemetry(self, request: web.BaseRequest, peer: DevicePeer) -> web.Response:
        body = await self._read_body(request)
        try:
            text = read_message(body)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        number = await asyncio.to_thread(self._store.add, peer.device, text, received=self._clock())
        return answer({"id": number}, status=201)

    async def _healthz(self, _: web.BaseRequest, __: DevicePeer) -> web.Response:
        try:
            await asyncio.to_thread(self._store.check)
            stored = True
        except StorageError as error:
            log("storage error", level=logging.ERROR, error=str(error))
            stored = False
        problem = self._crl.problem() if self._crl is not None else None
        days = (self._own_expiry() - self._clock()).days
        ok = stored and problem is None and days >= 0
        facts: dict[str, Any] = {
            "ok": ok,
            "store": "reachable" if stored else "unreachable",
            "crl": "not configured" if self._crl is None else problem or "fresh",
            "certificate_days_left": days,
        }
        return answer(facts, status=200 if ok else 503)

    async def _read_body(self, request: web.BaseRequest) -> bytes:
        if request.content_type != "application/json" or (request.charset or "utf-8").lower() != "utf-8":
            raise Refusal(415, "expected application/json in UTF-8")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "expected no content coding")
        too_large = Refusal(413, f"larger than {MESSAGE_LIMIT} bytes", close=True)
        if (request.content_length or 0) > MESSAGE_LIMIT:
            raise too_large
        await _continue(request)
        try:
            async with asyncio.timeout(self._body_timeout):
                return await request.read()
        except TimeoutError as error:
            raise Refusal(408, "the body came too slowly", close=True) from error
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large from error
        except web.RequestPayloadError as error:  # by aiohttp's parser in Python; the one in C says nothing until 408
            raise Refusal(400, "the body is malformed", close=True) from error


async def _continue(request: web.BaseRequest) -> None:
    """Tells a client that waits for it to go on (RFC 9110, 10.1.1)."""
    expectation = request.headers.get("Expect")
    if expectation is None:
        return
    if expectation.lower() != "100-continue":
        raise Refusal(417, "expectation failed", close=True)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # that was not yet the answer


def _tls(request: web.BaseRequest) -> ssl.SSLObject:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
    return tls
