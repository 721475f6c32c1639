"""What the duties do with the TPM: each opens it for itself, in the thread that has it (`StoreWorker.apart`)."""

from __future__ import annotations

from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.attestation.health import Failure, shortened
from tpm_mtls.life_cycle import Change, judge
from tpm_mtls.life_cycle_observed import observe
from tpm_mtls.tpm import open_tpm
from tpm_mtls.tpm.ledger import Ledger
from tpm_mtls_agent.health import check_health
from tpm_mtls_agent.quote import collect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tpm_mtls.attestation.health import FailureKind, HealthReport
    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.life_cycle import LifeCycle
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_agent.health import Authorizations
    from tpm_mtls_agent.quote import Collected

_KINDS: Final[dict[Change, FailureKind]] = {
    Change.CLEARED: "TpmCleared",
    Change.CLEARED_OR_SWAPPED: "TpmCleared",
    Change.SWAPPED: "TpmSwapped",
}


def with_life_cycle(report: HealthReport, life: LifeCycle | None) -> HealthReport:
    """``report``, which begins with what became of the TPM if that ended the identity: the rest follows from it."""
    if life is None or life.usable:
        return report
    failure = Failure(kind=_KINDS[life.change], reason=shortened(life.text), hint=shortened(life.hint))
    return msgspec.structs.replace(report, failures=(failure, *report.failures))


@dataclass(frozen=True)
class TpmWork:
    """The TPM at ``tcti`` and the identity in ``folder``.

    Attributes:
        tcti: where the TPM is.
        folder: the identity folder.
        authorizations: what its keys need.
        ledger: where is written down what is loaded, for the time after a kill; none behind a resource manager.
        event_log: the firmware's event log; none to send none.
        ima_log: the kernel's list of measured files; none to send none.
    """

    tcti: str | None
    folder: Path
    authorizations: Authorizations
    ledger: Path | None
    event_log: Path | None
    ima_log: Path | None

    def check(self) -> HealthReport:
        """As `tpm_mtls_agent.health.check_health`."""
        return check_health(self.tcti, self.folder, authorizations=self.authorizations, ledger=self.ledger)

    def life_cycle(self, record: IdentityRecord, reset_count: int | None) -> tuple[LifeCycle, int | None]:
        """What became of the TPM since it had ``reset_count``, or since ``record``; and its present count.

        Raises:
            as `tpm_mtls.life_cycle_observed.observe`.
        """
        with self._opened() as tpm:
            observed = observe(tpm, self.folder, record)
        return judge(record, observed, reset_count=reset_count), observed.reset_count

    def collect(self, nonce: bytes) -> Collected:
        """As `tpm_mtls_agent.quote.collect`."""
        with self._opened() as tpm:
            return collect(tpm, self.folder, nonce, self.event_log, self.ima_log)

    @contextmanager
    def _opened(self) -> Iterator[Tpm]:
        authorization = self.authorizations.srk
        with (
            closing(Ledger(self.ledger)) if self.ledger is not None else nullcontext() as ledger,
            open_tpm(self.tcti, srk_authorization=authorization, ledger=ledger) as tpm,
        ):
            yield tpm
