"""The duty to renew: when, and what follows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tpm_mtls.certificates import load_certificates
from tpm_mtls.identity import CERTIFICATE
from tpm_mtls.renewal import renewal_at
from tpm_mtls_agent.duties import commands
from tpm_mtls_agent.duties.record import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls_agent.duties.settings import DutySettings
    from tpm_mtls_agent.duties.told import Told
    from tpm_mtls_agent.duties.world import World
    from tpm_mtls_agent.worker import StoreWorker

_log = logging.getLogger(__name__)


class Renewal:
    """Renews the certificate by a child process, which leaves the old identity or the new one, whatever happens."""

    def __init__(self, settings: DutySettings, worker: StoreWorker, told: Told, world: World) -> None:
        self._settings = settings
        self._worker = worker
        self._told = told
        self._world = world
        self._random = world.random()

    def seconds_left(self) -> float:
        """Seconds until it is time by the wall clock, which may have been set; 0 if it is.

        Raises:
            CredentialError, StorageError: the certificate cannot be read.
        """
        at = renewal_at(*self._dates(), self._random)
        self._told.note(renews_at=int(at.timestamp()))
        return max(0.0, (at - self._world.now()).total_seconds())

    async def renew(self, _: IdentityRecord) -> bool:
        """Gets another certificate, if it is time for one; then runs what is to follow.

        Raises:
            TpmMtlsError: it failed, as ``tpm-mtls keygen renew`` says, or what was to follow did.
        """
        if self.seconds_left() > 0:
            return True
        async with self._worker.shared():
            answer = await commands.keygen("renew", self._settings.renewal_options)
        self._told.note(renewal=Outcome(time=self._world.seconds()))
        if answer.changed:
            _log.info("the certificate is renewed: valid until %s", f"{self._dates()[1]:%Y-%m-%d %H:%M} UTC")
            self._random = self._world.random()
            if self._settings.on_renewal:
                await commands.after_renewal(self._settings.on_renewal, self._settings.folder)
        return True

    def _dates(self) -> tuple[datetime, datetime]:
        leaf = load_certificates(self._settings.folder / CERTIFICATE)[0]
        return leaf.not_valid_before_utc, leaf.not_valid_after_utc
