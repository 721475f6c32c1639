"""The duties towards the backend: to say how the TPM is, and to show what was booted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.device_requests import DeviceTransport, Timeouts
from tpm_mtls.identity import load_identity
from tpm_mtls_agent.duties.backend import Backend

if TYPE_CHECKING:
    from tpm_mtls.attestation.health import HealthReport
    from tpm_mtls.attestation.messages import Verdict
    from tpm_mtls.device_requests import Server
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls_agent.duties.settings import DutySettings
    from tpm_mtls_agent.duties.told import Told
    from tpm_mtls_agent.duties.world import World
    from tpm_mtls_agent.worker import StoreWorker

_TIMEOUTS: Final = Timeouts(step=30.0, exchange=300.0)  # seconds: 8 MiB take four minutes at 300 kbit/s
_NONCE: Final = 1  # the number of the check that the next nonce may pass


class Exchange:
    """Speaks to ``server`` as the device; every method raises what those of `Backend` do."""

    def __init__(self, server: Server, settings: DutySettings, worker: StoreWorker, told: Told, world: World) -> None:
        self._server = server
        self._settings = settings
        self._worker = worker
        self._told = told
        self._world = world
        self._work = settings.tpm_work()

    async def report(self, health: HealthReport) -> bool:
        """Sends ``health``; whether the backend wants a quote now."""
        backend = self._backend()
        async with self._worker.shared():
            return (await backend.report(health)).attest

    async def attest(self, identity: IdentityRecord) -> bool:
        """Shows what was booted; a verdict against it is the backend's affair, and no failure of this duty.

        Returns:
            Whether it is done; else the nonce came too late, and another may do.

        Raises:
            TpmMtlsError: besides, what `tpm_mtls_agent.quote.collect` raises.
        """
        if not identity.is_tpm or load_attestation_key(self._settings.folder) is None:
            text = "this device enrolled without an attestation key: it shows the backend no quotes"
            self._told.state("attestation", "none", text)
            return True
        backend = self._backend()
        async with self._worker.shared():
            challenge = await backend.challenge()
        collected = await self._worker.apart(lambda: self._work.collect(challenge.nonce))
        self._told.state("logs", collected.missing, "; ".join(collected.missing))
        async with self._worker.shared():
            verdict = await backend.judge(collected.evidence)
        self._tell(verdict)
        count = self._told.record.attestations + 1
        self._told.note(verdict=verdict, attested=self._world.seconds(), attestations=count)
        return verdict.trusted or verdict.check != _NONCE

    def _tell(self, verdict: Verdict) -> None:
        if verdict.trusted:
            text = f"the backend trusts what was booted ({verdict.state})"
            self._told.state("attestation", (verdict.state,), text)
            return
        found = "; ".join(filter(None, (verdict.reason, *verdict.differences)))
        check = f"check {verdict.check}, " if verdict.check is not None else ""
        text = f"the backend does not trust what was booted ({check}{verdict.state}): {found}"
        self._told.state("attestation", (verdict.state, verdict.check, found), text, level=logging.WARNING)

    def _backend(self) -> Backend:
        """With the present certificate: it may have been renewed."""
        settings = self._settings
        identity = load_identity(settings.folder)
        transport = DeviceTransport(self._server, identity, settings.tcti, settings.authorizations.key, _TIMEOUTS)
        return Backend(self._server, transport.send_async)
