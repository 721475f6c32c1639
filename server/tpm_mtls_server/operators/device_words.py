"""What the registry knows about a device, for whoever has to decide what to do about it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation.messages import CHECKS, DeviceState
from tpm_mtls.tables import plain
from tpm_mtls_server.operators.device_facts import health_report, instant, last_contact
from tpm_mtls_server.registry import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from tpm_mtls_server.operators.device_facts import Dossier
    from tpm_mtls_server.registry import AuditRow, DeviceRow, ObservationRow, StandingVerdict

HISTORY: Final = 5
"""Rows of the audit log that a person is shown; --json has more."""

MODES: Final = {
    Mode.LEARN: "against its own first quote",
    Mode.APPROVE: "against what an operator approved",
    Mode.VALUES: "against the group's values",
    Mode.SIGNED: "against the group's signed policies",
}
"""What the devices of a group are held against."""

_CLOCK: Final = 7
_POLICY: Final = 9

_COMMAND: Final = "tpm-mtls server device"


def verdict_words(verdict: StandingVerdict | None) -> str:
    """What the last quote showed, in a few words."""
    if verdict is None:
        return "none yet"
    if verdict.trusted:
        return "passed"
    if verdict.pending:
        return "waits for approval"
    return f"failed check {verdict.check} ({CHECKS.get(verdict.check or 0, 'unknown')})"


def health_words(device: DeviceRow) -> str | None:
    """What the device last said about its health, in a few words; none if it never said anything."""
    if device.health_at is None:
        return None
    report = health_report(device)
    if report is None:
        return "unreadable"
    if report.failures:
        return ", ".join(dict.fromkeys(each.kind for each in report.failures))
    return f"good, {len(report.warnings)} warnings" if report.warnings else "good"


def dossier_lines(dossier: Dossier, *, now: datetime) -> Iterator[str]:
    """All that a person needs to decide, line by line; nothing in it can do harm to a terminal."""
    yield f"{dossier.device.name}: {dossier.device.state(now)}"
    for name, value in _facts(dossier):
        yield f"  {f'{name}:' if name else '':<13} {plain(value)}"
    for title, lines in (
        ("what differs", _differences(dossier)),
        ("health", _health(dossier.device)),
        ("what to do", _advice(dossier, now)),
        ("history", (_history(each) for each in dossier.history[:HISTORY])),
    ):
        found = [plain(line) for line in lines]
        if found:
            yield f"\n{title}:"
            yield from (f"  {line}" for line in found)


def _facts(dossier: Dossier) -> Iterator[tuple[str, str]]:
    device, group, baseline = dossier.device, dossier.group, dossier.baseline
    if device.quarantined_at is not None:
        yield "quarantined", f"{instant(device.quarantined_at)}: {device.quarantine_reason}"
    if device.refused_at is not None:
        other = f"with another TPM, {device.refused_tpm}" if device.refused_tpm else "without a TPM"
        yield "refused", f"{instant(device.refused_at)}: a certificate of this name {other}"
    verdict = device.verdict
    if verdict is None:
        yield "last quote", "none yet"
    else:
        yield "last quote", f"{instant(verdict.at)}: {verdict_words(verdict)}"
        for part in verdict.reason.split("; "):
            yield "", part
    pcrs = f", PCRs {', '.join(map(str, group.pcrs))} only" if group.pcrs else ""
    yield "group", f"{group.name} (held {MODES[group.mode]}{pcrs})"
    if baseline is not None:
        how = f"approved by {baseline.accepted_by}" if baseline.accepted_by else "learned"
        counts = group.mode is Mode.LEARN or (group.mode is Mode.APPROVE and baseline.accepted_by)
        idle = "" if counts else "; it does not count in this group"
        yield "baseline", f"{how} {instant(baseline.accepted_at)}, from the quote of {instant(baseline.at)}{idle}"
    yield "TPM", device.tpm or "none that was proved to the CA"
    yield "certificate", f"{device.serial}, valid until {instant(device.not_after)}"
    yield "last seen", f"{instant(last_contact(device))}; first {instant(device.first_seen)}"
    for key in dossier.keys:
        yield "enrolled key", f"{key.name} ({instant(key.added_at)} by {key.added_by})"


def _differences(dossier: Dossier) -> tuple[str, ...]:
    """Those of the quote that the verdict is about: a newer one may have failed check 1, and so says nothing."""
    verdict = dossier.device.verdict
    if verdict is None or verdict.trusted:
        return ()
    judged = (each for each in dossier.quotes if (each.at, each.check) == (verdict.at, verdict.check))
    return next((each.differences for each in judged), ())


def _health(device: DeviceRow) -> Iterator[str]:
    report, at = health_report(device), device.health_at
    if at is None:
        return
    yield f"{instant(at)}: {health_words(device)}"
    if report is None:
        return
    for failure in report.failures:
        yield f"{failure.kind}: {failure.reason}; {failure.hint}"
    for warning in report.warnings:
        yield f"{warning.kind}: {warning.text}; {warning.hint}"


def _advice(dossier: Dossier, now: datetime) -> Iterator[str]:
    device = dossier.device
    name, state = device.name, device.state(now)
    if device.refused_tpm:
        yield f"if it was given another TPM on purpose: {_COMMAND} release {name}"
    if state is DeviceState.QUARANTINED:
        yield f"to let it in again: {_COMMAND} release {name}"
        return
    seen = _approvable(dossier)
    if seen is not None and _is_approved(dossier, seen):
        yield "that boot is approved by now; let it send another quote, on the device: tpm-mtls agent check"
    elif seen is not None:
        yield f"if it should boot that: {_COMMAND} approve {name} --boot {seen.digest}"
    elif device.verdict is not None and device.verdict.check == _CLOCK:
        yield f"if you know why the clock of its TPM went back: {_COMMAND} approve {name}"
    elif state in {DeviceState.UNATTESTED, DeviceState.OUTDATED}:
        yield "let it send a quote; on the device: tpm-mtls agent check"
    if state is DeviceState.FAILING:
        yield f"if it should not be let in anywhere: {_COMMAND} quarantine {name} --reason TEXT"


def _approvable(dossier: Dossier) -> ObservationRow | None:
    """What the last quote showed, if an approval is all that lacks; in a group with references it changes nothing."""
    verdict, seen = dossier.device.verdict, dossier.seen
    if verdict is None or verdict.trusted or verdict.check != _POLICY:
        return None
    return seen if dossier.group.mode in {Mode.LEARN, Mode.APPROVE} else None


def _is_approved(dossier: Dossier, seen: ObservationRow) -> bool:
    baseline = dossier.baseline
    return baseline is not None and bool(baseline.accepted_by) and baseline.digest == seen.digest


def _history(row: AuditRow) -> str:
    """In a line: of the backend's own reasons what it found, without what it advised then."""
    told = {name: value for name, value in row.detail.items() if value is not None}
    if not row.actor and "reason" in told:
        told["reason"] = str(told["reason"]).partition("; ")[0]
    detail = ", ".join(f"{name} {value}" for name, value in told.items())
    by = f" by {row.actor}" if row.actor else ""
    return f"{instant(row.at)} {row.event}{by}{': ' + detail if detail else ''}"
