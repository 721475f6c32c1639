"""What follows from the checks: failures, cautions, and the words for both. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard

from tpm_mtls.attestation.health import (
    Caution,
    CautionKind,
    Check,
    CheckName,
    Condition,
    Failure,
    FailureKind,
    HealthReport,
    shortened,
)
from tpm_mtls.errors import TpmRefusedError, TpmUnavailableError
from tpm_mtls.tpm_attributes import WHY_IT_COUNTS
from tpm_mtls.tpm_firmware import firmware_faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tpm_mtls.errors import TpmMtlsError

_KINDS: Final[dict[CheckName, FailureKind]] = {"wrap": "EncFailure", "quote": "QuoteFailure", "sign": "SignFailure"}

_FAILURE: Final = 0x101  # TPM_RC_FAILURE: TPM 2.0 Library part 2 rev 1.59, 6.6.3
_NEARLY_FULL: Final = 2
"""A renewal with a new key needs one place beside the old one; below this there is none for anything else."""


@dataclass(frozen=True)
class Skipped:
    """There was nothing to check; ``caution`` if there should have been."""

    caution: Caution | None = None


@dataclass(frozen=True)
class Result:
    """How a check ended; with neither ``error`` nor ``skipped`` it passed.

    Attributes:
        name: which check.
        seconds: how long it took.
        error: why it failed.
        skipped: that there was nothing to check.
    """

    name: CheckName
    seconds: float
    error: TpmMtlsError | None = None
    skipped: Skipped | None = None

    def as_check(self) -> Check:
        """For the report."""
        if self.skipped is not None:
            return Check(name=self.name, outcome="skipped")
        seconds = min(round(self.seconds, 3), 86_400.0)
        return Check(name=self.name, outcome="failed" if self.error else "passed", seconds=seconds)


def failures(
    results: Sequence[Result], condition: Condition | None, trouble: TpmMtlsError | None
) -> tuple[Failure, ...]:
    """Why the device must go into maintenance mode, each class once.

    1. A TPM that does not answer is TpmUnavailable, whichever check it was that found out.
    2. A failed self-test, and failure mode, are SelfTestFailure, beside whatever fails because of it.
    3. A failed check is EncFailure, QuoteFailure or SignFailure, all of them if all failed.

    Args:
        results: of all checks.
        condition: what the TPM says about itself, if it does.
        trouble: why it does not.
    """
    found: dict[FailureKind, Failure] = {}
    errors = [(None, trouble), *((each.name, each.error) for each in results)]
    for _, error in errors:
        if isinstance(error, TpmUnavailableError):
            found.setdefault("TpmUnavailable", _failure("TpmUnavailable", str(error), error.hint))  # 1
    if condition is not None and condition.self_test == "failed":
        found["SelfTestFailure"] = _failure(  # 2
            "SelfTestFailure",
            f"the TPM's self-test failed ({condition.vendor}, firmware {condition.firmware})",
            "power the machine off and on again; if it stays, replace the TPM",
        )
    elif _is_failure_mode(trouble):
        found["SelfTestFailure"] = _failure("SelfTestFailure", str(trouble), trouble.hint)
    for name, error in errors:
        if name is not None and error is not None and not isinstance(error, TpmUnavailableError):
            found[_KINDS[name]] = _failure(_KINDS[name], str(error), error.hint)  # 3
    return tuple(found.values())


def cautions(
    results: Sequence[Result], condition: Condition | None, trouble: TpmMtlsError | None, *, raw: bool
) -> tuple[Caution, ...]:
    """What works yet, and should be looked at.

    Args:
        results: of all checks.
        condition: what the TPM says about itself, read while the agent had nothing loaded.
        trouble: why it does not say it.
        raw: whether the TPM has no resource manager, so that what is left in it stays.
    """
    skipped = [each.skipped.caution for each in results if each.skipped is not None]
    found = [each for each in skipped if each is not None]
    if trouble is not None and not isinstance(trouble, TpmUnavailableError) and not _is_failure_mode(trouble):
        found.append(_caution("CapabilitiesUnreadable", str(trouble), trouble.hint))
    if condition is not None:
        found += _about_memory(condition)
        found += _about_lockout(condition)
        found += _about_leftovers(condition) if raw else ()
        for fault in firmware_faults(condition.vendor, condition.firmware):
            text = f"firmware {condition.firmware} of {condition.vendor}: {fault.name}"
            found.append(_caution("KnownBadFirmware", text, f"{fault.effect} ({fault.source})"))
    return tuple(found)


def status_line(report: HealthReport) -> str:
    """One line for ``systemctl status``."""
    if not report.is_tpm:
        return "no TPM: the identity is a software key"
    if report.failures:
        kinds = ", ".join(each.kind for each in report.failures)
        return f"maintenance mode, {kinds}: {report.failures[0].reason}"
    return f"TPM healthy, {_plural(len(report.warnings), 'warning')}" if report.warnings else "TPM healthy"


def change_of(before: HealthReport | None, report: HealthReport) -> str | None:
    """What to log after a check: what became of maintenance mode and its reasons; none where nothing changed."""
    old = {each.kind: each for each in before.failures} if before is not None else {}
    new = {each.kind: each for each in report.failures}
    if old.keys() == new.keys():
        return None
    if not new:
        return f"maintenance mode ends: {', '.join(old)} mended"
    begun = [f"{kind}: {each.reason}; {each.hint}" for kind, each in new.items() if kind not in old]
    ended = [f"{kind} mended" for kind in old if kind not in new]
    return f"maintenance mode {'goes on' if old else 'begins'}: {'; '.join(begun + ended)}"


def _is_failure_mode(trouble: TpmMtlsError | None) -> TypeGuard[TpmRefusedError]:
    return isinstance(trouble, TpmRefusedError) and trouble.rc == _FAILURE


def _about_memory(condition: Condition) -> Iterator[Caution]:
    places, counters = condition.persistent_available, condition.nv_counters_available
    if min(places, counters) < _NEARLY_FULL:
        yield _caution(
            "NvNearlyFull",
            f"the TPM's NV memory is nearly full: room for {_plural(places, 'persistent key')} and "
            f"{_plural(counters, 'counter')} more",
            "see what takes it, and remove what nobody needs: tpm-mtls keygen list, tpm2_getcap handles-nv-index",
        )


def _about_lockout(condition: Condition) -> Iterator[Caution]:
    tried = f"{condition.lockout_counter} of {condition.lockout_limit} wrong authorization values"
    hint = (
        f"{WHY_IT_COUNTS}; one is forgotten every {condition.lockout_interval} s, or as the TPM's owner: "
        "tpm2_dictionarylockout --clear-lockout"
    )
    if condition.locked_out:
        yield _caution("Lockout", f"the TPM is in dictionary-attack lockout: {tried} were tried", hint)
    elif condition.lockout_counter:
        yield _caution("LockoutCounter", f"the TPM counts {tried}", hint)


def _about_leftovers(condition: Condition) -> Iterator[Caution]:
    """On a TPM without resource manager: it has room for three objects and three sessions, and keeps what is left."""
    if condition.transient_loaded:
        yield _caution(
            "LeakedObjects",
            f"{_plural(condition.transient_loaded, 'object')} loaded in a TPM without resource manager, room for "
            f"{condition.transient_available} more: left by a killed program, or in use by a running one",
            "use the resource manager (--tcti device:/dev/tpmrm0); or, when nothing runs: "
            "tpm2_flushcontext --transient-object",
        )
    if condition.sessions_active:
        yield _caution(
            "LeakedSessions",
            f"{_plural(condition.sessions_active, 'session')} open in a TPM without resource manager, room for "
            f"{condition.sessions_available} more: left by a killed program, or in use by a running one",
            "use the resource manager (--tcti device:/dev/tpmrm0); or, when nothing runs: "
            "tpm2_flushcontext --loaded-session",
        )


def _failure(kind: FailureKind, reason: str, hint: str) -> Failure:
    return Failure(kind=kind, reason=shortened(reason), hint=shortened(hint))


def _caution(kind: CautionKind, text: str, hint: str) -> Caution:
    return Caution(kind=kind, text=shortened(text), hint=shortened(hint))


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
