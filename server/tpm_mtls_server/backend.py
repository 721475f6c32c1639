"""What the backend answers, and to whom."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import CredentialError, StorageError
from tpm_mtls_server.endpoints.gate import closed
from tpm_mtls_server.endpoints.routes import DeviceRoute, OperatorRoute
from tpm_mtls_server.http import Refusal, connection_of, tls_of
from tpm_mtls_server.logs import PATH_LIMIT, log
from tpm_mtls_server.metrics import OTHER
from tpm_mtls_server.peer import AnyPeer, DevicePeer, OperatorPeer, check_dates, identify
from tpm_mtls_server.revocation import CrlFile, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aiohttp import web

    from tpm_mtls_server.endpoints.gate import Gate
    from tpm_mtls_server.endpoints.routes import Found, Routes
    from tpm_mtls_server.metrics import Metrics
    from tpm_mtls_server.registry.contacts import Contacts

RETRY_AFTER = {"Retry-After": "60"}
"""Seconds after which a client may ask again when the server cannot answer now."""

_WATCHED = "/healthz"
"""The path that answers when nothing else can."""


class Backend:
    """Answers requests whose TLS client certificate OpenSSL has verified.

    Each request, also on a kept connection and in a resumed session:

    1. The client certificate is one of our profiles for devices or operators (`peer.identify`; once per connection).
    2. It is valid now.
    3. Its CA has not revoked it; without a fresh CRL only ``/healthz`` answers.
    4. A device is the one that the registry knows by that name (`registry.contacts`).
    5. Its state lets it in (`gate.closed`): it is not quarantined, and attested where that is required.
    6. The path is for devices, or for operators, as the one who asks.
    """

    def __init__(
        self,
        *,
        routes: Routes,
        contacts: Contacts,
        gate: Gate,
        crl: CrlFile | None,
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        """Prepares the backend.

        Args:
            routes: what it answers.
            contacts: the registry, as devices come.
            gate: what attestation is required for.
            crl: the clients' CA's CRLs; none skips step 3.
            metrics: where requests are counted.
            clock: the time, in UTC.
        """
        self._routes = routes
        self._contacts = contacts
        self._gate = gate
        self._crl = crl
        self._metrics = metrics
        self._clock = clock

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to ``request``, counted, and logged in one line."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        reason: str | None = None
        found = self._routes.find(request.path)
        try:
            response = await self._answer(request, found)
        except Refusal as refusal:
            reason = str(refusal)
            response = refusal.response()
        except StorageError as error:
            log("storage error", level=logging.ERROR, error=str(error))
            reason = "the store is not available"
            response = Refusal(503, reason, headers=RETRY_AFTER).response()
        self._metrics.count_request(OTHER if found is None else found.path, response.status)
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

    async def _answer(self, request: web.BaseRequest, found: Found | None) -> web.StreamResponse:
        peer = self._identify(request)
        if isinstance(peer, DevicePeer):
            await self._admit(peer, request.path)
        if found is None:
            raise Refusal(404, "not found")
        if found.for_devices != isinstance(peer, DevicePeer):  # 6
            raise Refusal(403, "for devices only" if found.for_devices else "for operators only")
        match found.methods.get(request.method), peer:
            case DeviceRoute(handler=handler), DevicePeer():
                return await handler(request, peer)
            case OperatorRoute(handler=operate), OperatorPeer():
                return await operate(request, peer, found.parameters)
            case _:
                raise Refusal(405, "method not allowed", headers={"Allow": ", ".join(found.methods)})

    def _identify(self, request: web.BaseRequest) -> AnyPeer:
        connection = connection_of(request)
        try:
            if connection.peer is None:
                certificate = tls_of(request).getpeercert(binary_form=True)
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
        if verdict is Verdict.UNKNOWN and path != _WATCHED:
            why = crl.problem() or "no CRL of the certificate's CA is there"
            raise Refusal(503, f"revocation status unknown: {why}", headers=RETRY_AFTER)

    async def _admit(self, peer: DevicePeer, path: str) -> None:
        now = self._clock()
        try:
            device = await asyncio.to_thread(self._contacts.admit, peer, now=now)  # 4
        except CredentialError as error:
            raise Refusal(403, str(error), hint=error.hint, close=True) from error
        except StorageError:
            if path == _WATCHED and path not in self._gate.paths:
                return  # it tells that the store does not answer
            raise
        found = closed(device, path, gate=self._gate, now=now)  # 5
        if found is not None:
            raise Refusal(403, found.reason, hint=found.hint)
