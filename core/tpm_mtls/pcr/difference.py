"""Finding out which PCRs have other values than once, and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import AlgorithmUnsupportedError
from tpm_mtls.event_log import replay
from tpm_mtls.files import storage_errors
from tpm_mtls.pcr.baseline import Baseline, read_baseline
from tpm_mtls.pcr.explain import explain
from tpm_mtls.pcr.logs import KERNEL_LOG, present_log, read_log
from tpm_mtls.pcr.presentation import explanation_facts, explanation_lines
from tpm_mtls.policy.check import PcrDiffers, judge
from tpm_mtls.policy.observation import observe
from tpm_mtls.policy.states import state_of
from tpm_mtls.policy.words import in_words
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.pcr.explain import Explanation
    from tpm_mtls.pcr.logs import PresentLog
    from tpm_mtls.policy.check import Obstacle

_BANKS = ("sha256", "sha384", "sha512", "sha1")  # the usual one first, the weakest last


@dataclass(frozen=True)
class Differences:
    """Which PCRs have other values.

    Attributes:
        name: what said which values they had.
        words: which PCRs were compared, in words.
        explanations: those that differ, and why.
        others: what else a policy wants that does not hold.
        present: the event log of the present boot.
        path: where that is, or would be.
        remedy: what to do about it, as a hint.
    """

    name: str
    words: str
    explanations: tuple[Explanation, ...]
    others: tuple[Obstacle, ...]
    present: PresentLog
    path: Path
    remedy: str = ""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.explanations and not self.others

    def facts(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "baseline": self.name,
            "compared": self.words,
            "same": self.same,
            "differences": [explanation_facts(each) for each in self.explanations],
            "others": [str(each) for each in self.others],
            "event_log": str(self.path) if self.present.log is not None else None,
            "why_no_event_log": self.present.why_not,
        }

    def text(self) -> str:
        """All of it for a person."""
        if self.same:
            return f"nothing differs: {self.words}"
        lines = [line for each in self.explanations for line in explanation_lines(each)]
        lines += [str(each) for each in self.others]
        lines += [self.present.why_not] if self.present.why_not and self.explanations else []
        return "\n".join(lines)


def find_differences(
    what: str | None, *, log_before: Path | None, event_log: Path | None, state_dir: Path, tcti: str | None
) -> Differences:
    """Compares the present PCR values with those that ``what`` says, and explains what differs.

    Args:
        what: see `read_baseline`; none, and ``log_before`` given, for the values to which that leads.
        log_before: the event log of the boot with the earlier values.
        event_log: the event log of the present boot; the kernel's if none.
        state_dir: the identity folder.
        tcti: where the TPM is.

    Raises:
        CredentialError: ``what`` or a log that is named is malformed.
        StorageError: a file that is named cannot be read.
        TpmUnavailableError: no TPM answers.
    """
    before = read_log(log_before) if log_before is not None else None
    present = present_log(event_log)
    by_log = log_before if what is None else None
    baseline = _of_log(by_log, tcti) if by_log is not None else read_baseline(what, state_dir, tcti)
    with open_tpm(tcti) as tpm:
        observed = observe(tpm, baseline.policy, baseline.signed)
    verdict = judge(baseline.policy, observed, baseline.signed)
    obstacles = verdict.obstacles
    return Differences(
        name=baseline.name,
        words=in_words(baseline.policy),
        explanations=explain([each for each in obstacles if isinstance(each, PcrDiffers)], present.log, before),
        others=tuple(each for each in obstacles if not isinstance(each, PcrDiffers)),
        present=present,
        path=event_log or KERNEL_LOG,
        remedy=baseline.remedy(verdict),
    )


def _of_log(path: Path, tcti: str | None) -> Baseline:
    """The values to which the log in ``path`` leads, in the best bank that the TPM keeps; recorded when it was kept."""
    log = read_log(path)
    with open_tpm(tcti) as tpm:
        kept = tpm.pcrs.banks()
    banks = [bank for bank in _BANKS if bank in log.banks and bank in kept]
    if not banks:
        raise AlgorithmUnsupportedError(
            f"this TPM keeps none of the PCR banks of {path}", hint=f"these are {', '.join(log.banks)}", rc=0x083
        )
    with storage_errors(path, "read"):
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Baseline(str(path), state_of(replay(log, banks[:1]), now=written).pcrs, ())
