"""What a TPM says, and what the doctor makes of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from support.healthy_device import HANDLE, Device
from support.tpm_condition import WELL
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.authorization import Secret
from tpm_mtls.doctor.findings import Failed
from tpm_mtls.doctor.tpm_report import Seen, TpmJob, TpmReport, ask_tpm
from tpm_mtls.doctor.tpm_rules import judge_tpm
from tpm_mtls.identity import KEY, IdentityRecord

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.doctor.findings import Finding

RAW, MANAGED = "device:/dev/tpm0", "device:/dev/tpmrm0"
RECORD = IdentityRecord(
    device="sensor-17",
    key="handle:0x81000100",
    algorithm="ecc-p256",
    key_name="000b",
    srk_name="000b01",
    ek_sha256="ee",
    reset_count=4,
    ca_url="https://ca.example",
    enrolled_by="tpm",
)
SEEN = Seen(srk_name="000b01", ek_sha256=None, reset_count=4, has_key=True)
REPORT = TpmReport(
    specification="2.0 revision 1.59",
    condition=WELL,
    permanent=0b111,
    startup=0b1111,
    banks=("sha1", "sha256"),
    srk="ecc-p256 storage key",
    srk_is_key=True,
    seen=SEEN,
)


def report(condition: dict[str, Any] | None = None, **changes: Any) -> TpmReport:  # noqa: ANN401 - any of its fields
    changed = msgspec.structs.replace(WELL, **(condition or {}))
    return msgspec.structs.replace(REPORT, **({"condition": changed} | changes))


def unwell(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.level != "ok"]


def test_a_hardened_tpm_of_an_enrolled_device_is_well() -> None:
    found = judge_tpm(REPORT, RAW, RECORD)
    assert unwell(found) == []
    assert {each.check for each in found} == {
        "tpm.version", "tpm.same", "tpm.firmware", "tpm.pcr-banks", "tpm.lockout", "tpm.leaked-objects",
        "tpm.leaked-sessions", "tpm.room", "tpm.hierarchies", "tpm.storage-root-key",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "level", "check", "text", "remedy"),
    [
        ({"self_test": "failed"}, "problem", "tpm.self-test", "a test of its own failed", "replace the TPM"),
        ({"vendor": "NTC", "firmware": "1.3.2.8"}, "warning", "tpm.firmware", "CVE-2023-1017", "Nuvoton SA-003"),
        (
            {"vendor": "STM", "firmware": "73.4.17568.4452"},
            "problem",
            "tpm.firmware",
            "TPM-FAIL",
            "ecc-p256 key is one",
        ),
        ({"vendor": "IFX", "firmware": "5.61.2785.0"}, "warning", "tpm.firmware", "ROCA", "TPM-update"),
        ({"lockout_counter": 3}, "warning", "tpm.lockout", "3 of 32 wrong", "one is forgotten in 7200 s"),
        ({"lockout_counter": 32, "locked_out": True}, "problem", "tpm.lockout", "32 of 32", "200 s; or: .*clear"),
        ({"locked_out": True, "lockout_interval": 0}, "problem", "tpm.lockout", "locked", "none is ever forgotten"),
        ({"transient_loaded": 1, "transient_available": 2}, "warning", "tpm.leaked-objects", "1 objects", "flush"),
        ({"transient_loaded": 3, "transient_available": 0}, "problem", "tpm.leaked-objects", "no more", "flush"),
        ({"sessions_active": 2}, "warning", "tpm.leaked-sessions", "2 sessions .* 3 more", "flush"),
        ({"sessions_active": 3, "sessions_available": 0}, "problem", "tpm.leaked-sessions", "no more", "flush"),
        ({"sessions_active": 64, "sessions_active_available": 0}, "problem", "tpm.leaked-sessions", "64", "flush"),
        ({"persistent_available": 1}, "warning", "tpm.room", "room for 1 more", "tpm2_evictcontrol"),
        ({"persistent_available": 0}, "problem", "tpm.room", "room for 0 more", "keygen list"),
    ],
)
def test_each_condition_is_named(condition: dict[str, Any], level: str, check: str, text: str, remedy: str) -> None:
    (found,) = unwell(judge_tpm(report(condition), RAW, RECORD))
    assert (found.level, found.check) == (level, check)
    assert re.search(text, found.text), found
    assert re.search(remedy, found.remedy), found


@pytest.mark.parametrize(
    ("changes", "level", "check", "text"),
    [
        ({"banks": ("sha1",)}, "problem", "tpm.pcr-banks", "there is only sha1"),
        ({"banks": ()}, "problem", "tpm.pcr-banks", "none at all"),
        ({"startup": 0b1101}, "problem", "tpm.hierarchies", "the owner hierarchy is disabled"),
        ({"startup": 0b1011}, "problem", "tpm.hierarchies", "the endorsement hierarchy is disabled"),
        ({"permanent": 0b011}, "warning", "tpm.hierarchies", "set for: owner, endorsement; .* may clear it"),
        ({"srk_is_key": False}, "problem", "tpm.storage-root-key", "ecc-p256"),
    ],
)
def test_each_other_fault_is_named(changes: dict[str, Any], level: str, check: str, text: str) -> None:
    (found,) = unwell(judge_tpm(report(**changes), RAW, RECORD))
    assert (found.level, found.check) == (level, check)
    assert re.search(text, found.text), found


def test_what_counts_as_a_wrong_authorization_value_is_named() -> None:
    """Part 1 rev 1.59, 19.8.6: a power cut, too."""
    (found,) = unwell(judge_tpm(report({"lockout_counter": 1}), RAW, RECORD))
    assert found.text == "1 of 32 wrong authorization values"
    assert found.remedy == (
        "find out who tries, or whether power was lost without a TPM shutdown, which counts as one; one is forgotten "
        f"in 7200 s; or: tpm2_dictionarylockout -T {RAW} --clear-lockout (-p with its value)"
    )


def test_a_disabled_hierarchy_is_not_taken_for_another_tpm() -> None:
    """Its keys are not to be seen: to enroll anew would be the wrong remedy."""
    hidden = msgspec.structs.replace(SEEN, srk_name=None, has_key=False)
    said = judge_tpm(report(startup=0b1101, seen=hidden, srk="", srk_is_key=False), RAW, RECORD)
    assert not {each.check for each in said} & {"tpm.same", "tpm.storage-root-key"}
    (found,) = unwell(said)
    assert (found.check, found.text.partition(":")[0]) == (
        "tpm.hierarchies",
        "the owner hierarchy is disabled until the next restart",
    )


def test_roca_is_a_problem_for_an_rsa_key_and_a_warning_for_a_software_key() -> None:
    roca = report({"vendor": "IFX", "firmware": "5.61.2785.0"})
    rsa = msgspec.structs.replace(RECORD, algorithm="rsa-2048")
    (found,) = unwell(judge_tpm(roca, RAW, rsa))
    assert found.level == "problem"
    (found,) = unwell(judge_tpm(roca, RAW, msgspec.structs.replace(rsa, is_tpm=False)))
    assert found.level == "warning"


def test_behind_a_resource_manager_nothing_leaks() -> None:
    full = report({"transient_loaded": 3, "transient_available": 0})
    assert unwell(judge_tpm(full, MANAGED, RECORD)) == []


@pytest.mark.parametrize(
    ("seen", "level", "text"),
    [
        ({"srk_name": "000b02", "has_key": False, "ek_sha256": "ee"}, "problem", "the TPM was cleared"),
        ({"srk_name": None, "has_key": False, "ek_sha256": "ff"}, "problem", "this is another TPM"),
        ({"reset_count": 2}, "warning", "its state came out of a backup"),
    ],
)
def test_another_tpm_or_state_is_noticed(seen: dict[str, Any], level: str, text: str) -> None:
    (found,) = unwell(judge_tpm(report(seen=msgspec.structs.replace(SEEN, **seen)), RAW, RECORD))
    assert (found.level, found.check) == (level, "tpm.same")
    assert text in found.text


def test_a_device_that_is_not_enrolled_is_judged_without_an_identity() -> None:
    found = judge_tpm(report(seen=None, srk="", srk_is_key=False), RAW, None)
    assert unwell(found) == []
    assert "tpm.same" not in {each.check for each in found}
    assert found[-1].text == "there is none yet: the first key makes it"


@pytest.mark.parametrize(
    ("kind", "check"), [("TpmVersionError", "tpm.version"), ("TpmUnavailableError", "tpm.answers")]
)
def test_a_tpm_that_does_not_answer_is_all_there_is_to_say(kind: str, check: str) -> None:
    (found,) = judge_tpm(TpmReport(error=Failed(kind=kind, message="m", hint="h")), RAW, RECORD)
    assert (found.check, found.level, found.text, found.remedy) == (check, "problem", "m", "h")


def test_what_was_never_asked_says_nothing() -> None:
    assert judge_tpm(TpmReport(), RAW, None) == []


def test_an_error_that_came_later_is_told_after_what_explains_it() -> None:
    full = report({"transient_loaded": 3, "transient_available": 0}, srk="", srk_is_key=False, seen=None)
    found = judge_tpm(msgspec.structs.replace(full, error=Failed(kind="K", message="m", hint="h")), RAW, RECORD)
    assert [each.check for each in unwell(found)] == ["tpm.leaked-objects", "tpm.keys"]
    assert "tpm.storage-root-key" not in {each.check for each in found}


# what a TPM says


def test_a_tpm_says_how_it_is_and_whose_keys_it_has(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path)
    seen = ask_tpm(TpmJob(tcti=tpm.tcti, folder=str(device.folder), record=device.record))
    assert seen.error is None
    assert "sha256" in seen.banks
    assert seen.srk_is_key
    assert seen.specification.startswith("2.0 revision 1.")
    assert seen.seen == Seen(
        srk_name=device.record.srk_name, ek_sha256=None, reset_count=device.record.reset_count, has_key=True
    )
    assert not seen.key_is_protected
    assert seen.permanent & 0b111 == 0
    tpm.tool("tpm2_changeauth", "-c", "lockout", "secret")
    tpm.tool("tpm2_changeauth", "-c", "owner", "secret")
    again = ask_tpm(TpmJob(tcti=tpm.tcti, folder=str(device.folder)))
    assert again.permanent & 0b111 == 0b101
    assert again.seen is None


@pytest.mark.parametrize("persistent", [True, False])
def test_a_key_with_an_authorization_value_is_recognised(
    tpm: SimulatedTpm, tmp_path: Path, *, persistent: bool
) -> None:
    device = Device(tpm, tmp_path, persistent=persistent, authorization=Secret(b"value"))
    assert ask_tpm(TpmJob(tcti=tpm.tcti, folder=str(device.folder), record=device.record)).key_is_protected


def test_a_key_file_that_is_gone_is_no_fault_of_the_tpms(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path, persistent=False)
    (device.folder / KEY).unlink()
    found = ask_tpm(TpmJob(tcti=tpm.tcti, folder=str(device.folder), record=device.record))
    assert (found.error, found.key_is_protected) == (None, False)


def test_a_handle_without_a_key_has_no_authorization_value(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
    seen = ask_tpm(TpmJob(tcti=tpm.tcti, folder=str(device.folder), record=device.record))
    assert not seen.key_is_protected
    assert seen.seen is not None
    assert not seen.seen.has_key


def test_another_tpm_says_which_it_is(tpm: SimulatedTpm, tmp_path: Path, make_tpm: Any) -> None:  # noqa: ANN401 - a fixture
    device = Device(tpm, tmp_path)
    known = load_attestation_key(device.folder)
    assert known is not None
    record = msgspec.structs.replace(device.record, ek_sha256=known.ek_sha256)
    seen = ask_tpm(TpmJob(tcti=make_tpm().tcti, folder=str(device.folder), record=record)).seen
    assert seen is not None
    assert seen.srk_name is None
    assert seen.ek_sha256 not in {None, known.ek_sha256}


def test_what_is_in_the_storage_root_keys_place_is_said(tpm: SimulatedTpm, tmp_path: Path) -> None:
    context = str(tmp_path / "context")
    attributes = "sign|fixedtpm|fixedparent|userwithauth|sensitivedataorigin"
    tpm.tool("tpm2_createprimary", "-c", context, "-G", "ecc:ecdsa", "-a", attributes)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", context, "0x81000001")
    tpm.flush()
    seen = ask_tpm(TpmJob(tcti=tpm.tcti, folder=""))
    assert not seen.srk_is_key
    assert "is occupied by something else" in seen.srk


def test_a_tpm_that_is_off_says_nothing(tpm: SimulatedTpm) -> None:
    tpm.stop()
    seen = ask_tpm(TpmJob(tcti=tpm.tcti, folder=""))
    assert seen.condition is None
    assert seen.error is not None
    assert (seen.error.kind, seen.error.rc) == ("TpmUnavailableError", 0)


def test_a_storage_root_key_that_somebody_removed_is_told_from_one_that_is_not_made_yet() -> None:
    seen = Seen(srk_name=None, ek_sha256=None, reset_count=None, has_key=True)
    found = judge_tpm(report(srk="", srk_is_key=False, seen=seen), MANAGED, RECORD)
    assert [(each.check, each.level) for each in unwell(found)] == [("tpm.storage-root-key", "problem")]
    found = judge_tpm(report(srk="", srk_is_key=False, seen=None), MANAGED, None)
    assert unwell(found) == []
