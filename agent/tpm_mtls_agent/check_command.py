"""``tpm-mtls agent check``: a health check now, by the agent that runs or, if none does, by this process."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import closing, suppress
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from tpm_mtls.errors import IdentityError, StateError, TpmMtlsError
from tpm_mtls.event_log.content import printable
from tpm_mtls.files import make_folder, storage_errors
from tpm_mtls.identity import load_record
from tpm_mtls_agent.duties.record import load_duties
from tpm_mtls_agent.duties.tpm_work import TpmWork, with_life_cycle
from tpm_mtls_agent.health import HEALTH, load_health, publish, status_line
from tpm_mtls_agent.requests.listening import lock_holder, locked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tpm_mtls.attestation.health import HealthReport
    from tpm_mtls.attestation.messages import Verdict
    from tpm_mtls_agent.duties.record import DutiesRecord
    from tpm_mtls_agent.health import Authorizations

_PATIENCE: Final = 300.0  # seconds: a quote and two signatures of a slow chip, behind 256 secrets to be set
_STEP: Final = 0.05  # seconds between two looks at the file

R = TypeVar("R")


def check_now(
    state_dir: Path, lock: Path, run_dir: Path, *, tcti: str | None, authorizations: Authorizations
) -> HealthReport:
    """The report of a health check that was made after this was called; it is in ``run_dir``, too.

    Args:
        state_dir: the identity folder.
        lock: the agent's lock file.
        run_dir: where the agent shows its reports.
        tcti: where the TPM is, if no agent runs.
        authorizations: what the keys need, if no agent runs.

    Raises:
        IdentityError: an agent runs, and has no identity to look after.
        StateError: it ended, or did not check in time.
        StorageError: a file cannot be read or written, or this user may not ask that agent.
    """
    holder = lock_holder(lock)
    if holder is not None:
        return _ask(holder, state_dir, lock, run_dir)
    make_folder(state_dir)
    with locked(lock, f"another agent runs in {state_dir}"):
        report = _check(TpmWork(tcti, state_dir, authorizations, None, None, None))
        publish(run_dir, report)
        return report


def wait_for_verdict(lock: Path, run_dir: Path, *, since: float, patience: float) -> Verdict:
    """What the backend says of a quote that the agent made after ``since``, in which it was asked to check.

    Args:
        lock: the agent's lock file.
        run_dir: where the agent shows what its duties came to.
        since: seconds of ``time.monotonic``.
        patience: seconds to wait for it, at the most.

    Raises:
        StateError: no agent runs, it ended, it has no backend or did not reach it, or it was not done in time.
        IdentityError, StorageError: what it shows cannot be read.
    """
    pid = lock_holder(lock)
    if pid is None:
        raise StateError(
            "no agent runs that could show the backend what was booted",
            hint="start it: tpm-mtls agent run --backend URL; or check without --wait",
        )
    end = time.monotonic() + patience
    with storage_errors(lock, f"wait for the agent, process {pid}, of"), _process(pid) as process:
        late = StateError(
            f"the backend's verdict did not come within {patience:g} seconds",
            hint="wait longer: --wait SECONDS; what came later: tpm-mtls agent status",
        )
        return _verdict(_comes(lambda: _shown(run_dir, since, _round_began), pid, process, end, late))


def _verdict(duties: DutiesRecord) -> Verdict:
    """That of the round which is over."""
    if duties.backend is None:
        raise StateError("the agent has no backend", hint="name it: tpm-mtls agent run --backend URL")
    if duties.backend.error:
        raise StateError(f"the agent has no verdict: {duties.backend.error}", hint=duties.backend.hint)
    if duties.verdict is None:
        raise StateError(
            "the agent shows the backend no quotes: this device has no attestation key",
            hint="enroll with evidence: tpm-mtls keygen first-boot without a token",
        )
    return duties.verdict


def as_data(report: HealthReport, verdict: Verdict | None = None) -> dict[str, Any]:
    """For a script: what is in ``health.json``, whether that means maintenance mode, and the ``verdict``, if any."""
    data = {"maintenance": report.maintenance, **msgspec.to_builtins(report)}
    return data if verdict is None else data | {"verdict": msgspec.to_builtins(verdict)}


def describe(report: HealthReport, verdict: Verdict | None = None) -> str:
    """For a person."""
    lines = [status_line(report)]
    lines += [f"{check.name}: {check.outcome} ({check.seconds:.3f} s)" for check in report.checks]
    lines += [f"{each.kind}: {each.reason}" for each in report.failures]
    lines += [f"warning, {each.kind}: {each.text}; {each.hint}" for each in report.warnings]
    if verdict is not None:
        lines.append(f"backend: {verdict.state}")
    return "\n".join(lines)


def failure(report: HealthReport, verdict: Verdict | None = None) -> TpmMtlsError | None:
    """The error that tells the first reason for maintenance mode, or else why the backend does not trust the device.

    None if all is well.
    """
    if report.maintenance:
        first = report.failures[0]
        return StateError(f"maintenance mode, {first.kind}: {first.reason}", hint=first.hint)
    if verdict is None or verdict.trusted:
        return None
    reason, _, advice = printable(verdict.reason).partition("; ")
    return StateError(
        f"the backend does not trust what was booted: {reason}", hint=advice or "the backend's operators know more"
    )


def _check(work: TpmWork) -> HealthReport:
    """As the agent does it."""
    life = None
    with suppress(TpmMtlsError):  # the check says what is wrong
        record = load_record(work.folder)
        if record is not None and record.is_tpm:
            life, _ = work.life_cycle(record, None)
    return with_life_cycle(work.check(), life)


def _ask(pid: int, state_dir: Path, lock: Path, run_dir: Path) -> HealthReport:
    if load_record(state_dir) is None:
        raise IdentityError(
            f"the agent has no identity in {state_dir} to look after", hint="enroll first: tpm-mtls keygen first-boot"
        )
    since = time.monotonic()
    with storage_errors(lock, f"ask the agent, process {pid}, of"), _process(pid) as process:
        if lock_holder(lock) != pid:  # the number may have passed to another process before it was pinned down
            raise _ended(pid)
        signal.pidfd_send_signal(process.fileno(), signal.SIGUSR1)
        late = StateError(
            f"the agent, process {pid}, did not check within {_PATIENCE:g} seconds",
            hint="is that its --run-dir? its log says more: journalctl -u tpm-mtls-agent",
        )
        _comes(lambda: _shown(run_dir, since, _check_began), pid, process, time.monotonic() + _PATIENCE, late)
    report = load_health(run_dir)
    if report is None:
        raise StateError(f"{run_dir / HEALTH} is gone again", hint="what else writes there?")
    return report


def _check_began(duties: DutiesRecord) -> float | None:
    return duties.check_began


def _round_began(duties: DutiesRecord) -> float | None:
    return duties.round_began


def _shown(run_dir: Path, since: float, began: Callable[[DutiesRecord], float | None]) -> DutiesRecord | None:
    """What the agent shows of its duties, once that which ``began`` tells of began after ``since``, and is over."""
    try:
        duties = load_duties(run_dir)
    except IdentityError:  # damaged; the agent writes it anew
        return None
    moment = None if duties is None else began(duties)
    # A moment that is to come is of an earlier start of this machine: it counts from there.
    return duties if moment is not None and since <= moment <= time.monotonic() else None


def _comes(look: Callable[[], R | None], pid: int, process: IO[bytes], end: float, late: StateError) -> R:
    """What ``look`` finds, as soon as it does; not longer than ``process`` lives, nor than ``end``: then ``late``."""
    while (found := look()) is None:
        if select.select([process], [], [], _STEP)[0]:
            raise _ended(pid)
        if time.monotonic() > end:
            raise late
    return found


def _process(pid: int) -> closing[Any]:
    """The process ``pid`` itself, whatever becomes of its number; readable when it has ended (pidfd_open(2))."""
    return closing(os.fdopen(os.pidfd_open(pid), "rb", buffering=0))


def _ended(pid: int) -> StateError:
    return StateError(f"the agent, process {pid}, ended", hint="see why: journalctl -u tpm-mtls-agent; then ask again")
