"""The duty to look: at the TPM, at what became of it, and whether the certificate is there."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from tpm_mtls.errors import IdentityError, StorageError, TpmMtlsError
from tpm_mtls.identity import CERTIFICATE
from tpm_mtls_agent.duties import commands
from tpm_mtls_agent.duties.tpm_work import with_life_cycle
from tpm_mtls_agent.health import change_of, load_health, publish

if TYPE_CHECKING:
    from tpm_mtls.attestation.health import HealthReport
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.life_cycle import LifeCycle
    from tpm_mtls_agent.duties.settings import DutySettings
    from tpm_mtls_agent.duties.told import Told
    from tpm_mtls_agent.worker import StoreWorker

_log = logging.getLogger(__name__)


class Checking:
    """Looks, and tells this machine.

    Attributes:
        report: the last health report; none before the first check.
    """

    def __init__(self, settings: DutySettings, worker: StoreWorker, told: Told, *, serving: str) -> None:
        """``serving`` is what else ``systemctl status`` is to show."""
        self.report: HealthReport | None = None
        self._settings = settings
        self._worker = worker
        self._told = told
        self._serving = serving
        self._work = settings.tpm_work()
        self._before: HealthReport | None = None
        self._life: LifeCycle | None = None
        self._resets: int | None = None
        with suppress(IdentityError, StorageError):  # only so that what it says already is not told again
            self._before = load_health(settings.run_dir)

    @property
    def usable(self) -> bool:
        """Whether the identity is of this TPM, and of this life of it, as far as is known."""
        return self._life is None or self._life.usable

    async def check(self, identity: IdentityRecord) -> bool:
        """Looks at everything; what is wrong is in the report. Whether that is where others find it.

        Raises:
            UsageError, StorageError: the configuration file is wrong, or a file cannot be opened.
        """
        if identity.is_tpm:
            await self._judge(identity)
        await self._restore()
        report = with_life_cycle(await self._worker.apart(self._work.check), self._life)
        if change := change_of(self._before, report):
            _log.log(logging.ERROR if report.failures else logging.INFO, "%s", change)
        self.report = self._before = report
        try:
            await asyncio.to_thread(publish, self._settings.run_dir, report, doing=self._serving)
        except StorageError as error:
            self._told.trouble("run folder", error)
            return False
        return True

    async def _judge(self, identity: IdentityRecord) -> None:
        """Whether it is still the TPM that the device was enrolled with; that it is not, the report tells."""
        try:
            life, resets = await self._worker.apart(lambda: self._work.life_cycle(identity, self._resets))
        except TpmMtlsError as error:
            _log.debug("the TPM's life cycle cannot be judged: %s", error)  # the health check says why
            return
        self._life, self._resets = life, resets
        if life.usable:
            self._told.state("life cycle", (life.change, resets), "; ".join(filter(None, (life.text, life.hint))))
        self._told.note(life_cycle=life.change.value, life_cycle_text=life.text)

    async def _restore(self) -> None:
        """Brings a certificate file back that is gone, from the TPM's NV memory."""
        if (self._settings.folder / CERTIFICATE).exists() or not self.usable:
            return
        try:
            async with self._worker.shared():
                await commands.keygen("restore", self._settings.restore_options)
        except TpmMtlsError as error:
            self._told.trouble("certificate", error)
        else:
            self._told.good("certificate", "")
            _log.warning("the certificate file was gone: it is restored from the TPM's NV memory")
