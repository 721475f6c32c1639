"""Does what is due: a thin loop around `schedule`, which decides."""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import IdentityError, PeerError, StorageError, TpmMtlsError
from tpm_mtls.identity import load_record
from tpm_mtls_agent.duties.checking import Checking
from tpm_mtls_agent.duties.exchange import Exchange
from tpm_mtls_agent.duties.record import Outcome
from tpm_mtls_agent.duties.renewal import Renewal
from tpm_mtls_agent.duties.schedule import Duty, Schedule
from tpm_mtls_agent.duties.told import Told
from tpm_mtls_agent.duties.world import World

if TYPE_CHECKING:
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls_agent.duties.settings import DutySettings
    from tpm_mtls_agent.worker import StoreWorker

_log = logging.getLogger(__name__)

_LOOK: Final = 60.0  # seconds between two looks for an identity, where there is none
_TOPICS: Final = {Duty.CHECK: "health check", Duty.REPORT: "backend", Duty.ATTEST: "backend", Duty.RENEW: "renewal"}


class Duties:
    """The duties of an agent; `work` does them until it is cancelled."""

    def __init__(
        self, settings: DutySettings, worker: StoreWorker, *, serving: str = "", world: World | None = None
    ) -> None:
        """``serving`` is what else ``systemctl status`` is to show."""
        self._settings = settings
        self._world = world or World()
        self._told = Told(_log, settings.run_dir)
        self._asked = asyncio.Event()
        self._checking = Checking(settings, worker, self._told, serving=serving)
        self._renewal = Renewal(settings, worker, self._told, self._world)
        self._exchange = (
            Exchange(settings.backend, settings, worker, self._told, self._world) if settings.backend else None
        )
        self._round: float | None = self._world.monotonic()  # when the present one began
        self._schedule = Schedule(
            settings.pace, settings.duties(), now=self._world.monotonic(), random=self._world.random
        )

    def check_now(self) -> None:
        """Everything is due now, whatever failed before."""
        self._asked.set()

    async def work(self) -> None:
        """Does what is due, when it is due. Without an identity nothing is; one that appears is noticed."""
        while True:
            identity = self._identity()
            duty = self._schedule.due(self._world.monotonic()) if identity is not None else None
            if identity is None or duty is None:
                await self._end_round(identity)
                look = min(_LOOK, self._settings.pace.interval)
                await self._wait(look if identity is None else self._schedule.wait(self._world.monotonic()))
            else:
                await self._do(duty, identity)

    async def _wait(self, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        if self._asked.is_set():
            self._asked.clear()
            self._round = self._world.monotonic()
            self._schedule.all_now(self._round)

    async def _end_round(self, identity: IdentityRecord | None) -> None:
        """Shows that all that was due is done, to whoever asked for it."""
        if identity is not None and self._round is not None:
            self._told.note(round_began=self._round)
            self._round = None
            await asyncio.to_thread(self._told.save)

    def _identity(self) -> IdentityRecord | None:
        try:
            record = load_record(self._settings.folder)
        except (IdentityError, StorageError) as error:
            self._told.trouble("identity", error)
            return None
        self._told.good("identity", f"the identity in {self._settings.folder} can be read again")
        return record

    async def _do(self, duty: Duty, identity: IdentityRecord) -> None:
        """Does it, and plans its next time."""
        try:
            done = await self._done(duty, identity)
        except TpmMtlsError as error:
            self._failed(duty, error)
        except Exception as error:  # noqa: BLE001 - the last handler: a duty's fault keeps nobody from his secrets
            self._failed(duty, _internal(error))
        else:
            now = self._world.monotonic()
            if done:
                self._succeeded(duty, now)
            else:
                self._schedule.failed(duty, now, alone=True)
        self._plan_renewal()
        await asyncio.to_thread(self._told.save)

    async def _done(self, duty: Duty, identity: IdentityRecord) -> bool:
        """Does it; whether it is done, and not to be tried again soon."""
        if duty is Duty.CHECK:
            began = self._world.monotonic()
            if await self._checking.check(identity):
                self._told.note(check_began=began)
            return True
        if not self._checking.usable:  # the identity is of another TPM, or of this one's former life
            return False
        if duty is Duty.RENEW:
            return await self._renewal.renew(identity)
        if self._exchange is not None and duty is Duty.ATTEST:
            return await self._exchange.attest(identity)
        if self._exchange is not None and self._checking.report is not None:
            wanted = await self._exchange.report(self._checking.report)
            if wanted:
                self._schedule.plan(Duty.ATTEST, self._world.monotonic())
        return True

    def _failed(self, duty: Duty, error: TpmMtlsError) -> None:
        self._schedule.failed(duty, self._world.monotonic(), alone=not isinstance(error, PeerError))
        self._told.trouble(_TOPICS[duty], error)
        outcome = Outcome(time=self._world.seconds(), error=str(error), hint=error.hint)
        if duty in {Duty.REPORT, Duty.ATTEST}:
            self._told.note(backend=outcome)
        elif duty is Duty.RENEW:
            self._told.note(renewal=outcome)

    def _succeeded(self, duty: Duty, now: float) -> None:
        self._schedule.succeeded(duty, now)
        if duty in {Duty.REPORT, Duty.ATTEST}:
            self._told.note(backend=Outcome(time=self._world.seconds()))
            self._told.good(_TOPICS[duty], "the exchange with the backend works again")
        else:
            self._told.good(_TOPICS[duty], f"the {_TOPICS[duty]} works again")

    def _plan_renewal(self) -> None:
        """Anew after every duty: the wall clock may have been set, and the certificate replaced."""
        if not self._schedule.has(Duty.RENEW):
            return
        with suppress(TpmMtlsError):  # the health check says what is wrong with the certificate
            self._schedule.plan(Duty.RENEW, self._world.monotonic() + self._renewal.seconds_left())


def _internal(error: Exception) -> TpmMtlsError:
    """The error for a fault of ours: where it is."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"internal error in the agent's duties: {type(error).__name__} at {where.filename}:{where.lineno}"
    return TpmMtlsError(text, hint="please report it; secrets are served as before")
