"""What every device may ask: who it is to the server, whether the server is well; and where its telemetry goes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import StorageError
from tpm_mtls_server.endpoints.body import read_body
from tpm_mtls_server.endpoints.routes import DeviceRoute
from tpm_mtls_server.http import Refusal, answer, tls_of
from tpm_mtls_server.logs import log
from tpm_mtls_server.telemetry import MESSAGE_LIMIT, read_message

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aiohttp import web

    from tpm_mtls_server.database import Database
    from tpm_mtls_server.peer import DevicePeer
    from tpm_mtls_server.revocation import CrlFile
    from tpm_mtls_server.telemetry import TelemetryStore


class DeviceApi:
    """``/whoami``, ``/healthz`` and ``/telemetry``."""

    def __init__(
        self,
        *,
        database: Database,
        store: TelemetryStore,
        crl: CrlFile | None,
        own_expiry: Callable[[], datetime],
        clock: Callable[[], datetime],
        body_timeout: float,
    ) -> None:
        """Prepares the endpoints.

        Args:
            database: whose state ``/healthz`` tells.
            store: where telemetry goes.
            crl: the clients' CA's CRLs; none if there are none.
            own_expiry: when the server's own certificate expires.
            clock: the time, in UTC.
            body_timeout: seconds that a request's body may take.
        """
        self._database = database
        self._store = store
        self._crl = crl
        self._own_expiry = own_expiry
        self._clock = clock
        self._body_timeout = body_timeout

    def routes(self) -> tuple[DeviceRoute, ...]:
        """The endpoints."""
        return (
            DeviceRoute("GET", "/healthz", self._healthz),
            DeviceRoute("POST", "/telemetry", self._telemetry),
            DeviceRoute("GET", "/whoami", self._whoami),
        )

    async def _whoami(self, request: web.BaseRequest, peer: DevicePeer) -> web.Response:
        tls = tls_of(request)
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
        body = await read_body(request, limit=MESSAGE_LIMIT, timeout=self._body_timeout)
        try:
            text = read_message(body)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        number = await asyncio.to_thread(self._store.add, peer.device, text, received=self._clock())
        return answer({"id": number}, status=201)

    async def _healthz(self, _: web.BaseRequest, __: DevicePeer) -> web.Response:
        try:
            await asyncio.to_thread(self._database.check)
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
