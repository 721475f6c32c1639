"""``/attestation``: nonces for devices, and what their quotes show."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation.messages import EVIDENCE_LIMIT, Challenge, decode_evidence
from tpm_mtls.errors import EvidenceError, PolicyError
from tpm_mtls_server.attestation import verify
from tpm_mtls_server.endpoints.attestation_facts import facts_of, findings_of, shown_by
from tpm_mtls_server.endpoints.body import read_body
from tpm_mtls_server.endpoints.gate import ATTESTATION_PATH, NONCE_PATH
from tpm_mtls_server.endpoints.routes import DeviceRoute
from tpm_mtls_server.http import Refusal, answer
from tpm_mtls_server.logs import log
from tpm_mtls_server.registry.attestations import NONCE_LIFETIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

    from aiohttp import web

    from tpm_mtls.attestation.messages import Verdict
    from tpm_mtls_server.attestation import AttestationTrust, Facts
    from tpm_mtls_server.metrics import Metrics
    from tpm_mtls_server.peer import DevicePeer
    from tpm_mtls_server.registry.attestations import Attestations
    from tpm_mtls_server.registry.background import Background, TakenNonce
    from tpm_mtls_server.revocation import CrlFile, RevocationLists

UPLOADS: Final = 16
"""Quotes that are read or judged at the same time: 128 MiB at most."""

_RETRY_SOON: Final = {"Retry-After": "5"}

_JUDGED_AGAIN: Final = 3
"""How often a quote is judged when what it is judged by changes meanwhile: by an operator, or another quote."""


class AttestationApi:
    """``/attestation/nonce`` and ``/attestation``."""

    def __init__(
        self,
        *,
        attestations: Attestations,
        trust: AttestationTrust,
        crl: CrlFile | None,
        lifetime: timedelta,
        metrics: Metrics,
        clock: Callable[[], datetime],
        body_timeout: float,
    ) -> None:
        """Prepares the endpoints.

        Args:
            attestations: the registry.
            trust: whose certificates of attestation keys count.
            crl: the clients' CA's CRLs; without, no certificate of an attestation key counts.
            lifetime: how long a quote counts that passed.
            metrics: where verdicts are counted.
            clock: the time, in UTC.
            body_timeout: seconds that a quote and its logs may take.
        """
        self._attestations = attestations
        self._trust = trust
        self._crl = crl
        self._lifetime = lifetime
        self._metrics = metrics
        self._clock = clock
        self._body_timeout = body_timeout
        self._sending: set[str] = set()
        # threads of its own: a long log must not keep short questions to the database waiting
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="verifier")

    def routes(self) -> tuple[DeviceRoute, ...]:
        """The endpoints."""
        return (
            DeviceRoute("POST", NONCE_PATH, self._nonce),
            DeviceRoute("POST", ATTESTATION_PATH, self._attest),
        )

    def close(self) -> None:
        """Ends the threads, after what they are at."""
        self._threads.shutdown()

    async def _nonce(self, _: web.BaseRequest, peer: DevicePeer) -> web.Response:
        nonce = await asyncio.to_thread(self._attestations.give_nonce, peer.device, now=self._clock())
        return answer(Challenge(nonce=nonce, lifetime=int(NONCE_LIFETIME.total_seconds())))

    async def _attest(self, request: web.BaseRequest, peer: DevicePeer) -> web.Response:
        with self._upload(peer.device):
            body = await read_body(request, limit=EVIDENCE_LIMIT, timeout=self._body_timeout)
            lists = None if self._crl is None else self._crl.lists()
            loop = asyncio.get_running_loop()
            verdict = await loop.run_in_executor(self._threads, self._judge, peer, body, lists)
        self._metrics.count_verdict(verdict.check)
        return answer(verdict)

    @contextlib.contextmanager
    def _upload(self, device: str) -> Iterator[None]:
        if device in self._sending:
            raise Refusal(429, "another quote of this device is being judged", headers=_RETRY_SOON, close=True)
        if len(self._sending) == UPLOADS:
            raise Refusal(503, "too many quotes are being judged", headers=_RETRY_SOON, close=True)
        self._sending.add(device)
        try:
            yield
        finally:
            self._sending.discard(device)

    def _judge(self, peer: DevicePeer, body: bytes, lists: RevocationLists | None) -> Verdict:
        try:
            evidence = decode_evidence(body)
        except EvidenceError as error:
            raise Refusal(400, str(error)) from error
        nonce = self._attestations.take_nonce(evidence.nonce, peer.device)
        shown = shown_by(evidence)
        for _ in range(_JUDGED_AGAIN):
            background = self._attestations.background(peer.device)
            now = self._clock()
            facts = self._facts(background, peer, nonce, lists)
            judgement = verify(evidence, facts, now=now)
            device = self._attestations.record(
                background, shown, findings_of(judgement), lifetime=self._lifetime, now=now
            )
            if device is not None:
                return judgement.verdict(device.state(now))
        raise Refusal(503, "what the quote is judged by keeps changing", headers=_RETRY_SOON)

    def _facts(
        self, background: Background, peer: DevicePeer, nonce: TakenNonce | None, lists: RevocationLists | None
    ) -> Facts:
        try:
            return facts_of(background, peer, nonce, trust=self._trust, revocation=lists)
        except PolicyError as error:
            log("policy error", level=logging.ERROR, group=background.group.name, error=str(error), hint=error.hint)
            raise Refusal(503, "what the quote is judged by cannot be read", headers=_RETRY_SOON) from error
