"""What is in the identity folder, and the clock, judged. Pure."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tpm_mtls.doctor.findings import ok, problem, problem_of, warning
from tpm_mtls.doctor.identity_report import JOURNAL, has_remains, is_begun
from tpm_mtls.identity import CERTIFICATE, DEFAULT_FOLDER, KEY, RECORD, TRUST
from tpm_mtls.renewal import renewal_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.doctor.findings import Failed, Finding
    from tpm_mtls.doctor.identity_report import IdentityReport

WRITTEN: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""This program is not older: a clock that says an earlier time is wrong."""

_LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)
_OTHERS_WRITE: Final = 0o022
_OTHERS_READ: Final = 0o077
_RENEWAL: Final = 64 * 1024  # bytes: chain, record and journal, each written beside the old one
_CLOCK: Final = "set it: timedatectl set-ntp true (or date -u -s '…'); a board without a clock needs NTP before TLS"
_FROM_THE_TPM: Final = (
    "or move the files away and run tpm-mtls keygen first-boot: where the TPM has a copy, it brings it back"
)
_ENROLL: Final = "enroll the device: tpm-mtls keygen first-boot --help"


def judge_clock(now: datetime, identity: IdentityReport) -> Finding:
    """Whether ``now`` can be: no certificate verifies by a wrong clock."""
    said = f"the clock says {now:%Y-%m-%d %H:%M} UTC"
    if now < WRITTEN:
        return problem("clock", f"{said}, and this program was written later", _CLOCK)
    if now > _LATEST:
        return problem("clock", f"{said}, which no certificate will live to see", _CLOCK)
    if identity.begins is not None and now < identity.begins:
        return problem(
            "clock", f"{said}, and the certificate is valid only from {identity.begins:%Y-%m-%d %H:%M}", _CLOCK
        )
    return ok("clock", said)


def judge_identity(report: IdentityReport, now: datetime) -> list[Finding]:
    """What ``report`` means at the time ``now``.

    1. The folder is there, can be read, nobody else may write to it, and there is room for a renewal.
    2. The record is there and whole.
    3. A software key is its owner's secret. A key that is a file is there.
    4. The certificate can be read, and leads to the trust anchor.
    5. It has not expired, and was renewed when it was due.
    """
    if not report.exists:
        return [warning("identity.folder", f"there is no identity: {report.folder} does not exist", _ENROLL)]
    if report.unreadable is not None:
        return [problem_of("identity.folder", report.unreadable)]
    findings = [_folder(report), *_room(report)]  # 1
    if report.record_error is not None:  # 2
        return [*findings, problem_of("identity.record", report.record_error)]
    if report.record is None:
        return [*findings, _no_record(report)]
    record = report.record
    kind = "in the TPM" if record.is_tpm else "in software"
    findings.append(ok("identity.record", f"{record.device}: {record.algorithm} key {record.key}, {kind}"))
    findings += _software_key(report)  # 3
    if report.misses(record.key):
        findings.append(
            problem(
                "identity.key",
                f"the key's file {report.folder}/{KEY} is not there",
                "restore it from a backup; or enroll again",
            )
        )
    findings += _certificate(report, now)  # 4, 5
    return findings


def _folder(report: IdentityReport) -> Finding:
    if report.mode & _OTHERS_WRITE:
        return problem(
            "identity.folder",
            f"other users may write to {report.folder} (mode {report.mode:04o}): they can exchange key and trust",
            f"chmod 0750 {report.folder}, then look at what is in it",
        )
    for entry in report.entries:
        # who may go through the folder can open what is in it; a link's own mode means nothing
        others = (entry.mode & 0o020 and report.mode & 0o010) or (entry.mode & 0o002 and report.mode & 0o001)
        if entry.name in {RECORD, CERTIFICATE, TRUST, KEY} and not entry.is_link and others:
            path = f"{report.folder}/{entry.name}"
            text = f"other users may write to {path} (mode {entry.mode:04o}): they can exchange key and trust"
            return problem("identity.folder", text, f"chmod go-w {shlex.quote(path)}, then look at what is in it")
    return ok("identity.folder", f"{report.folder} (mode {report.mode:04o})")


def _room(report: IdentityReport) -> Iterator[Finding]:
    if report.read_only:
        yield warning(
            "identity.room",
            f"{report.folder} is on a read-only file system: a renewed certificate cannot be kept",
            "mount it to be written (mount -o remount,rw), or keep the folder elsewhere: --state-dir",
        )
    elif report.free is not None and report.free < _RENEWAL:
        yield problem(
            "identity.room",
            f"the file system of {report.folder} is full: a renewed certificate cannot be kept",
            f"make room: df {shlex.quote(report.folder)}; du -x says what takes it",
        )


def _no_record(report: IdentityReport) -> Finding:
    if is_begun(report):
        return problem(
            "identity.record",
            f"an enrollment was interrupted: {report.folder} has its journal, {JOURNAL}, and no identity.json",
            "run tpm-mtls keygen first-boot again: it goes on where it stopped",
        )
    if has_remains(report):
        return problem(
            "identity.record",
            f"{report.folder} has files of an identity, and no identity.json: whose they are cannot be told",
            f"restore it from a backup; {_FROM_THE_TPM}",
        )
    return warning("identity.record", f"there is no identity in {report.folder} yet", _ENROLL)


def _software_key(report: IdentityReport) -> Iterator[Finding]:
    if report.record is None or report.record.is_tpm:
        return
    yield warning(
        "identity.software-key",
        "the key is a file: who can read it has the identity for good",
        "enroll again with a TPM where the device has one; see docs/how-to/without-a-tpm.md",
    )
    for entry in report.entries:
        if entry.name == KEY and entry.mode & _OTHERS_READ:
            yield problem(
                "identity.software-key",
                f"other users may read the private key {report.folder}/{KEY} (mode {entry.mode:04o})",
                f"chmod 600 {report.folder}/{KEY}; if one of them may have done so: revoke and enroll again",
            )


def _there_but_unreadable(report: IdentityReport, name: str, error: Failed) -> str:
    """What to do where the file ``name`` is there and cannot be read for ``error``; empty where that is not so."""
    is_there = name in {entry.name for entry in report.entries}
    return error.hint if is_there and error.kind == "StorageError" else ""


def _certificate_back(report: IdentityReport, error: Failed) -> str:
    """What to do where the certificate cannot be read for ``error``; `keygen restore` writes none that is there."""
    if hint := _there_but_unreadable(report, CERTIFICATE, error):
        return hint
    is_there = CERTIFICATE in {entry.name for entry in report.entries}
    away = f"move {CERTIFICATE} away; then " if is_there else ""
    if report.record is None or not report.record.is_tpm:
        return f"{away}restore it from a backup; or enroll again"
    return f"{away}get it back from the TPM's copy: {_keygen('restore', report)}; or enroll again"


def _keygen(verb: str, report: IdentityReport) -> str:
    """The command, as it is typed for this folder."""
    named = "" if report.folder == str(DEFAULT_FOLDER) else f" --state-dir {shlex.quote(report.folder)}"
    return f"tpm-mtls keygen {verb}{named}"


def _certificate(report: IdentityReport, now: datetime) -> Iterator[Finding]:
    check = "identity.certificate"
    folder = report.folder
    if report.certificate_error is not None:
        yield problem(check, report.certificate_error.message, _certificate_back(report, report.certificate_error))
    if report.trust_error is not None:
        remedy = _there_but_unreadable(report, TRUST, report.trust_error) or (
            f"copy the CA's root certificate to {folder}/{TRUST} again"
        )
        yield problem("identity.chain", report.trust_error.message, remedy)
    if report.chain_error is not None:
        yield problem_of("identity.chain", report.chain_error)
    if report.begins is None or report.ends is None:
        return
    until = f"{report.subject}, valid until {report.ends:%Y-%m-%d %H:%M} UTC"
    due = renewal_at(report.begins, report.ends, 1.0)
    if now > report.ends:
        yield problem(
            check,
            f"the certificate expired: {until}; now it is {now:%Y-%m-%d %H:%M}",
            f"{_keygen('renew', report)}; if the CA takes no expired certificate: enroll again; or is the clock wrong?",
        )
    elif now > due:
        yield warning(
            check,
            f"the renewal is overdue since {due:%Y-%m-%d}: {until}",
            f"{_keygen('renew', report)} says why it does not work; does the agent or a timer renew it?",
        )
    else:
        yield ok(check, until)
