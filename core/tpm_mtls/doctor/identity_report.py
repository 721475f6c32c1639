"""What is in the identity folder; no TPM and no OpenSSL provider is asked."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Final

import msgspec

from tpm_mtls.certificates import Purpose, check_chain, load_certificates
from tpm_mtls.doctor.findings import Failed, failed
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.files import storage_error
from tpm_mtls.identity import CERTIFICATE, KEY, RECORD, TRUST, IdentityRecord, load_record

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509

JOURNAL: Final = "first-boot.json"
"""What `keygen first-boot` writes first and removes last."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the folder: its name, permission bits, owner's number, size in bytes, and whether it is a link."""

    name: str
    mode: int
    uid: int
    size: int
    is_link: bool = False


class IdentityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        folder: the folder's path.
        exists: whether it is there.
        mode: its permission bits.
        read_only: whether its file system is.
        free: bytes that a user may still write there; none where it was not looked at.
        entries: what is in it; empty where it cannot be listed.
        unreadable: why the folder cannot be listed.
        record: ``identity.json``; none without one.
        record_error: why it cannot be read.
        subject: the certificate's subject.
        begins: when its validity begins.
        ends: when it ends.
        certificate_error: why the certificate cannot be read.
        trust_error: why the trust anchor cannot be read.
        chain_error: why it does not lead to the trust anchor, its own dates left aside.
    """

    folder: str
    exists: bool = False
    mode: int = 0
    read_only: bool = False
    free: int | None = None
    entries: tuple[Entry, ...] = ()
    unreadable: Failed | None = None
    record: IdentityRecord | None = None
    record_error: Failed | None = None
    subject: str = ""
    begins: datetime | None = None
    ends: datetime | None = None
    certificate_error: Failed | None = None
    trust_error: Failed | None = None
    chain_error: Failed | None = None

    @property
    def is_whole(self) -> bool:
        """Whether record, certificate, trust anchor and, if it is a file, the key can be there."""
        errors = (self.record_error, self.certificate_error, self.trust_error)
        return self.record is not None and errors == (None,) * 3 and not self.misses(self.record.key)

    def misses(self, key: str) -> bool:
        """Whether the folder was listed, and the file of ``key``, a key reference, is not in it."""
        return key == KEY and bool(self.entries) and key not in {entry.name for entry in self.entries}


def observe_identity(folder: Path, now: datetime) -> IdentityReport:
    """What is in ``folder`` at the time ``now``."""
    report = IdentityReport(folder=str(folder), exists=True)
    try:
        report = _listed(report, folder)
        report = msgspec.structs.replace(report, record=load_record(folder))
    except FileNotFoundError:
        return IdentityReport(folder=str(folder))
    except OSError as error:
        return msgspec.structs.replace(report, unreadable=failed(storage_error(error, folder, "list")))
    except TpmMtlsError as error:
        report = msgspec.structs.replace(report, record_error=failed(error))
    return _certificate(report, folder, now) if report.record is not None else report


def _listed(report: IdentityReport, folder: Path) -> IdentityReport:
    entries = []
    for path in sorted(folder.iterdir()):
        with suppress(FileNotFoundError):  # gone again
            status = path.lstat()
            mode = stat.S_IMODE(status.st_mode)
            name = os.fsencode(path.name).decode(errors="replace")  # as JSON has it
            is_link = stat.S_ISLNK(status.st_mode)
            entries.append(Entry(name=name, mode=mode, uid=status.st_uid, size=status.st_size, is_link=is_link))
    system = os.statvfs(folder)
    return msgspec.structs.replace(
        report,
        mode=stat.S_IMODE(folder.stat().st_mode),
        read_only=bool(system.f_flag & os.ST_RDONLY),
        free=system.f_bavail * system.f_frsize,
        entries=tuple(entries),
    )


def _certificate(report: IdentityReport, folder: Path, now: datetime) -> IdentityReport:
    try:
        leaf, *issuers = load_certificates(folder / CERTIFICATE)
    except TpmMtlsError as error:
        return msgspec.structs.replace(report, certificate_error=failed(error))
    report = msgspec.structs.replace(
        report,
        subject=leaf.subject.rfc4514_string(),
        begins=leaf.not_valid_before_utc,
        ends=leaf.not_valid_after_utc,
    )
    try:
        anchors = load_certificates(folder / TRUST)
    except TpmMtlsError as error:
        return msgspec.structs.replace(report, trust_error=failed(error))
    try:
        _check_chain(leaf, issuers, anchors, now)
    except TpmMtlsError as error:
        return msgspec.structs.replace(report, chain_error=failed(error))
    return report


def _check_chain(
    leaf: x509.Certificate, issuers: list[x509.Certificate], anchors: tuple[x509.Certificate, ...], now: datetime
) -> None:
    """Now, or at the nearest instant at which the leaf is valid: whether it still is, is judged apart."""
    moment = min(max(now, leaf.not_valid_before_utc), leaf.not_valid_after_utc)
    check_chain(leaf, issuers, anchors, now=moment, purpose=Purpose.CLIENT)


def is_begun(report: IdentityReport) -> bool:
    """Whether `keygen first-boot` was interrupted: its journal is there, which it removes last."""
    return JOURNAL in {entry.name for entry in report.entries}


def has_remains(report: IdentityReport) -> bool:
    """Whether there is something of an identity, but not its record."""
    names = {entry.name for entry in report.entries}
    return report.record is None and RECORD not in names and bool(names & {KEY, CERTIFICATE})
