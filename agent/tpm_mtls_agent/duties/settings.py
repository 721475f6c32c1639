"""How the duties are done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tpm_mtls_agent.duties.schedule import Duty, Pace
from tpm_mtls_agent.duties.tpm_work import TpmWork
from tpm_mtls_agent.health import Authorizations

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.device_requests import Server

_LEDGER: Final = "duties.loaded.json"


@dataclass(frozen=True)
class Sources:
    """Where authorization values are, for child processes (`tpm_mtls.authorization`); none where there is none.

    Attributes:
        key: the TLS key's.
        owner: the owner hierarchy's.
        srk: the storage root key's.
        endorsement: the endorsement hierarchy's.
    """

    key: str | None = None
    owner: str | None = None
    srk: str | None = None
    endorsement: str | None = None


@dataclass(frozen=True)
class DutySettings:
    """What the agent's duties need to know.

    Attributes:
        folder: the identity folder.
        run_dir: where the results are shown.
        tcti: where the TPM is.
        exclusive: whether the TPM takes one connection at a time.
        backend: whom to tell and to show quotes; none to send nothing.
        pace: how often.
        event_log: the firmware's event log; none to send none.
        ima_log: IMA's binary list; none to send none.
        renew: whether certificates are renewed.
        rotate_key: whether a renewal makes a new key.
        on_renewal: what is run after one.
        authorizations: what the keys need, for this process.
        sources: the same for child processes.
    """

    folder: Path
    run_dir: Path
    tcti: str | None = None
    exclusive: bool = True
    backend: Server | None = None
    pace: Pace = field(default_factory=Pace)
    event_log: Path | None = None
    ima_log: Path | None = None
    renew: bool = True
    rotate_key: bool = False
    on_renewal: tuple[str, ...] = ()
    authorizations: Authorizations = field(default_factory=Authorizations)
    sources: Sources = field(default_factory=Sources)

    def duties(self) -> list[Duty]:
        """What is to be done at all."""
        told = [Duty.REPORT, Duty.ATTEST] if self.backend is not None else []
        return [Duty.CHECK, *told, *([Duty.RENEW] if self.renew else [])]

    def tpm_work(self) -> TpmWork:
        """What is done with the TPM."""
        ledger = self.folder / _LEDGER if self.exclusive else None
        return TpmWork(self.tcti, self.folder, self.authorizations, ledger, self.event_log, self.ima_log)

    @property
    def restore_options(self) -> list[str]:
        """Of ``tpm-mtls keygen restore``."""
        return ["--state-dir", str(self.folder), *(["--tcti", self.tcti] if self.tcti else [])]

    @property
    def renewal_options(self) -> list[str]:
        """Of ``tpm-mtls keygen renew``."""
        given = {
            "--auth": self.sources.key,
            "--owner-auth": self.sources.owner,
            "--srk-auth": self.sources.srk,
            "--endorsement-auth": self.sources.endorsement,
        }
        chosen = [word for option, source in given.items() if source is not None for word in (option, source)]
        rotation = ["--rotate-key"] if self.rotate_key else []
        return ["--if-due", *rotation, *chosen, *self.restore_options]
