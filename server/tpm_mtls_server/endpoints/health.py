"""``/health``: what a device says about its TPM, and whether the server wants a quote."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tpm_mtls.attestation.health import HEALTH_LIMIT, decode_health, encode_health
from tpm_mtls.attestation.messages import HealthAnswer
from tpm_mtls.errors import EvidenceError
from tpm_mtls_server.endpoints.body import read_body
from tpm_mtls_server.endpoints.gate import HEALTH_PATH
from tpm_mtls_server.endpoints.routes import DeviceRoute
from tpm_mtls_server.http import Refusal, answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aiohttp import web

    from tpm_mtls_server.metrics import Metrics
    from tpm_mtls_server.peer import DevicePeer
    from tpm_mtls_server.registry.attestations import Attestations


class HealthApi:
    """``/health``, open to every device whose certificate is good."""

    def __init__(
        self,
        *,
        attestations: Attestations,
        metrics: Metrics,
        clock: Callable[[], datetime],
        body_timeout: float,
    ) -> None:
        """Prepares the endpoint.

        Args:
            attestations: the registry.
            metrics: where reports are counted.
            clock: the time, in UTC.
            body_timeout: seconds that a report may take.
        """
        self._attestations = attestations
        self._metrics = metrics
        self._clock = clock
        self._body_timeout = body_timeout

    def routes(self) -> tuple[DeviceRoute, ...]:
        """The endpoint."""
        return (DeviceRoute("POST", HEALTH_PATH, self._report),)

    async def _report(self, request: web.BaseRequest, peer: DevicePeer) -> web.Response:
        body = await read_body(request, limit=HEALTH_LIMIT, timeout=self._body_timeout)
        try:
            report = decode_health(body)
        except EvidenceError as error:
            raise Refusal(400, str(error)) from error
        text = encode_health(report).decode()
        wanted = await asyncio.to_thread(self._attestations.report_health, peer.device, text, now=self._clock())
        self._metrics.count_report(maintenance=report.maintenance)
        return answer(HealthAnswer(attest=wanted and report.is_tpm))
