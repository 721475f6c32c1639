"""The identity folder and the clock, as the doctor sees them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from support.certificates import TestCa, now
from support.mounts import MOUNTS, may_mount
from tpm_mtls.doctor.findings import Failed
from tpm_mtls.doctor.identity_report import JOURNAL, Entry, IdentityReport, observe_identity
from tpm_mtls.doctor.identity_rules import WRITTEN, judge_clock, judge_identity
from tpm_mtls.identity import CERTIFICATE, DEFAULT_FOLDER, KEY, RECORD, TRUST, IdentityRecord, save_record
from tpm_mtls_keygen import first_boot_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.doctor.findings import Finding

NOW = datetime(2027, 1, 15, tzinfo=UTC)
SOFT = IdentityRecord(
    is_tpm=False, device="sensor-17", key=KEY, algorithm="ecc-p256", ca_url="https://ca.example", enrolled_by="token"
)
WELL = IdentityReport(
    folder="/state",
    exists=True,
    mode=0o750,
    record=msgspec.structs.replace(SOFT, is_tpm=True, key="handle:0x81000100", key_name="0b", srk_name="0b"),
    subject="CN=sensor-17",
    begins=datetime(2027, 1, 1, tzinfo=UTC),
    ends=datetime(2027, 3, 31, tzinfo=UTC),
)
RECORD_FILE = Entry(name=RECORD, mode=0o640, uid=0, size=500)
CERTIFICATE_FILE = Entry(name=CERTIFICATE, mode=0o600, uid=0, size=900)
ERROR = Failed(kind="PemError", message="m", hint="h")


def report(**changes: Any) -> IdentityReport:  # noqa: ANN401 - any of its fields
    return msgspec.structs.replace(WELL, **changes)


def unwell(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.level != "ok"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole identity with a software key."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o750)
    ca = TestCa(tmp_path)
    identity = ca.software_identity("sensor-17")
    shutil.copy(str(identity.key), folder / KEY)
    shutil.copy(identity.certificate, folder / CERTIFICATE)
    shutil.copy(ca.trust, folder / TRUST)
    save_record(folder, SOFT)
    return folder


def test_an_identity_in_a_tpm_is_well() -> None:
    found = judge_identity(WELL, NOW)
    assert unwell(found) == []
    assert found[-1].text == "CN=sensor-17, valid until 2027-03-31 00:00 UTC"


@pytest.mark.parametrize(
    ("changes", "level", "check", "text"),
    [
        ({"exists": False}, "warning", "identity.folder", "/state does not exist"),
        ({"unreadable": ERROR}, "problem", "identity.folder", "m"),
        ({"mode": 0o770}, "problem", "identity.folder", r"may write to /state \(mode 0770\)"),
        ({"read_only": True, "free": 0}, "warning", "identity.room", "/state is on a read-only file system"),
        ({"free": 65535}, "problem", "identity.room", "the file system of /state is full"),
        ({"record": None, "record_error": ERROR}, "problem", "identity.record", "m"),
        ({"record": None}, "warning", "identity.record", "no identity in /state yet"),
        ({"certificate_error": ERROR, "begins": None}, "problem", "identity.certificate", "m"),
        ({"chain_error": ERROR}, "problem", "identity.chain", "m"),
        ({"trust_error": ERROR}, "problem", "identity.chain", "m"),
        (
            {"record": msgspec.structs.replace(WELL.record, key=KEY), "entries": (RECORD_FILE,)},
            "problem",
            "identity.key",
            "/state/device.key.pem is not there",
        ),
        ({"ends": datetime(2027, 1, 14, tzinfo=UTC)}, "problem", "identity.certificate", "the certificate expired"),
        ({"ends": datetime(2027, 1, 20, tzinfo=UTC)}, "warning", "identity.certificate", "overdue since 2027-01-14"),
        ({"record": SOFT}, "warning", "identity.software-key", "the key is a file"),
    ],
)
def test_each_fault_is_named(changes: dict[str, Any], level: str, check: str, text: str) -> None:
    (found,) = unwell(judge_identity(report(**changes), NOW))
    assert (found.level, found.check) == (level, check)
    assert re.search(text, found.text), found
    assert found.remedy


@pytest.mark.parametrize(
    ("kind", "changes", "remedy"),
    [
        ("StorageError", {}, "get it back from the TPM's copy: tpm-mtls keygen restore --state-dir /state; or"),
        ("StorageError", {"folder": str(DEFAULT_FOLDER)}, "get it back from the TPM's copy: tpm-mtls keygen restore;"),
        ("PemError", {"entries": (CERTIFICATE_FILE,)}, "move device.cert.pem away; then get it back from the TPM's"),
        ("PemError", {"entries": (CERTIFICATE_FILE,), "record": SOFT}, "move device.cert.pem away; then restore it"),
        ("StorageError", {"record": SOFT}, "restore it from a backup; or enroll again"),  # no TPM has a copy
        ("StorageError", {"entries": (CERTIFICATE_FILE,)}, "h"),  # this user may not read it
    ],
)
def test_how_to_bring_a_certificate_back(kind: str, changes: dict[str, Any], remedy: str) -> None:
    error = msgspec.structs.replace(ERROR, kind=kind)
    found = judge_identity(report(certificate_error=error, begins=None, **changes), NOW)
    (lost,) = [each for each in found if each.check == "identity.certificate"]
    assert lost.remedy.startswith(remedy)


@pytest.mark.parametrize("day", [14, 20])
def test_a_renewal_is_typed_for_this_folder(day: int) -> None:
    ends = datetime(2027, 1, day, tzinfo=UTC)
    (found,) = unwell(judge_identity(report(ends=ends), NOW))
    assert found.remedy.startswith("tpm-mtls keygen renew --state-dir /state")
    (found,) = unwell(judge_identity(report(ends=ends, folder=str(DEFAULT_FOLDER)), NOW))
    assert "--state-dir" not in found.remedy


def test_an_interrupted_enrollment_is_told_from_none() -> None:
    key = Entry(name=KEY, mode=0o600, uid=0, size=200)
    begun = report(record=None, entries=(key, Entry(name=JOURNAL, mode=0o600, uid=0, size=200)))
    (found,) = unwell(judge_identity(begun, NOW))
    assert (found.level, found.check) == ("problem", "identity.record")
    assert "keygen first-boot again" in found.remedy


def test_a_record_that_is_gone_is_told_from_an_interrupted_enrollment() -> None:
    """Without its journal first-boot does not go on: it cannot tell whose the files are."""
    (found,) = unwell(judge_identity(report(record=None, entries=(CERTIFICATE_FILE,)), NOW))
    assert (found.level, found.check) == ("problem", "identity.record")
    assert "no identity.json: whose they are cannot be told" in found.text
    assert "move the files away" in found.remedy


def test_the_journal_is_called_as_first_boot_calls_it() -> None:
    assert JOURNAL == first_boot_folder.JOURNAL


@pytest.mark.parametrize(
    ("folder", "mode", "is_link", "level"),
    [
        (0o750, 0o664, False, "problem"),  # the group may pass the folder
        (0o755, 0o646, False, "problem"),
        (0o750, 0o646, False, "ok"),  # the others may not
        (0o700, 0o666, False, "ok"),
        (0o755, 0o777, True, "ok"),
    ],
)
def test_a_file_that_others_may_write_is_as_bad_as_such_a_folder(
    folder: int, mode: int, *, is_link: bool, level: str
) -> None:
    entry = Entry(name=TRUST, mode=mode, uid=0, size=700, is_link=is_link)
    found = judge_identity(report(mode=folder, entries=(entry, RECORD_FILE)), NOW)[0]
    assert (found.check, found.level) == ("identity.folder", level)
    assert level == "ok" or found.remedy.startswith(f"chmod go-w /state/{TRUST}")


def test_a_trust_anchor_that_may_not_be_read_is_not_to_be_replaced() -> None:
    denied = Failed(kind="StorageError", message="cannot read it: permission denied", hint="change the owner or mode")
    there = (RECORD_FILE, Entry(name=TRUST, mode=0o600, uid=0, size=700))
    (found,) = unwell(judge_identity(report(trust_error=denied, entries=there), NOW))
    assert found.remedy == "change the owner or mode"
    (found,) = unwell(judge_identity(report(trust_error=denied, entries=(RECORD_FILE,)), NOW))
    assert found.remedy.startswith("copy the CA's root certificate")


def test_a_name_that_is_no_utf_8_can_be_written_down(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.pem")).touch()
    found = observe_identity(folder, now())
    assert "\N{REPLACEMENT CHARACTER}.pem" in {entry.name for entry in found.entries}
    assert msgspec.json.decode(msgspec.json.encode(found), type=IdentityReport) == found


@pytest.mark.parametrize(("mode", "level"), [(0o600, "warning"), (0o640, "problem")])
def test_a_software_key_is_its_owners_secret(mode: int, level: str) -> None:
    found = unwell(judge_identity(report(record=SOFT, entries=(Entry(name=KEY, mode=mode, uid=0, size=200),)), NOW))
    assert found[-1].level == level


@pytest.mark.parametrize(
    ("moment", "level"),
    [
        (NOW, "ok"),
        (WRITTEN - timedelta(days=1), "problem"),
        (datetime(2200, 1, 1, tzinfo=UTC), "problem"),
        (datetime(2026, 12, 31, tzinfo=UTC), "problem"),  # before the certificate's validity
    ],
)
def test_the_clock_is_judged_by_what_cannot_be(moment: datetime, level: str) -> None:
    assert judge_clock(moment, WELL).level == level


def test_a_whole_folder_is_read(folder: Path) -> None:
    found = observe_identity(folder, now())
    assert [each.name for each in found.entries] == [TRUST, CERTIFICATE, KEY, RECORD]
    assert (found.mode, found.record, found.subject) == (0o750, SOFT, "CN=sensor-17")
    assert (found.certificate_error, found.chain_error, found.record_error, found.unreadable) == (None,) * 4


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    assert not observe_identity(tmp_path / "nowhere", now()).exists
    (folder / TRUST).unlink()
    found = observe_identity(folder, now())
    assert found.trust_error is not None
    assert (found.trust_error.kind, found.chain_error, found.is_whole) == ("StorageError", None, False)
    (folder / CERTIFICATE).write_text("nothing")
    certificate = observe_identity(folder, now()).certificate_error
    assert certificate is not None
    assert certificate.kind == "PemError"
    (folder / RECORD).write_text("{")
    record = observe_identity(folder, now()).record_error
    assert record is not None
    assert record.kind == "IdentityError"


def test_a_folder_that_is_a_file_cannot_be_listed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.touch()
    found = observe_identity(path, now())
    assert found.unreadable is not None
    assert found.unreadable.message == f"cannot list {path}: not a directory"


def test_a_folder_of_somebody_else_cannot_be_read(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be somebody else")
    os.seteuid(65534)
    try:
        found = observe_identity(folder, now())
    finally:
        os.seteuid(0)
    assert found.unreadable is not None
    assert "permission denied" in found.unreadable.message


_MOUNTED = """
import subprocess, sys
from datetime import UTC, datetime
from pathlib import Path
from tpm_mtls.doctor.identity_report import observe_identity
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], check=True)
for command in (["true"], ["cp", "/dev/zero", folder / "filler"], ["mount", "-o", "remount,ro", folder]):
    subprocess.run(command, stderr=subprocess.DEVNULL)
    found = observe_identity(folder, datetime.now(UTC))
    print(found.free, found.read_only)
"""


@pytest.mark.skipif(not may_mount(), reason="needs a mount namespace")
def test_a_full_disk_and_a_read_only_one_are_seen(tmp_path: Path) -> None:
    command = [*MOUNTS, sys.executable, "-c", _MOUNTED, str(tmp_path)]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert seen == ["131072 False", "0 False", "0 True"]


def test_the_chain_is_checked_while_the_certificate_is_valid(folder: Path) -> None:
    for moment in (now() + timedelta(days=400), datetime(1970, 1, 1, tzinfo=UTC)):
        assert observe_identity(folder, moment).chain_error is None
