"""Check 8: a log that is sent leads to what was quoted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.event_logs import (
    RECORDED,
    agile_log,
    changed,
    entry,
    made,
    recorded,
    recorded_bytes,
    recorded_pcrs,
    sha1_log,
    to_bytes,
    values_of,
    with_data,
)
from support.ima_lists import file_entry
from support.vectors import vector
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls.event_log import EventType
from tpm_mtls.ima import parse_ima_log, replay_ima
from tpm_mtls_server.attestation.logs import check_logs

if TYPE_CHECKING:
    from tpm_mtls.event_log import Entry

ALL = range(16)
SEPARATOR = bytes(4)
ENTRIES = [entry(pcr, EventType.EV_SEPARATOR, SEPARATOR) for pcr in range(8)]


def quoted(*entries: Entry) -> dict[str, dict[int, bytes]]:
    """The values after ``entries``; the other PCRs are as at the start."""
    return {"sha256": {pcr: bytes(32) for pcr in ALL} | dict(values_of(made(*entries)))}


def refused(event_log: bytes | None, ima_log: bytes | None, pcrs: dict[str, dict[int, bytes]], reason: str) -> None:
    with pytest.raises(EvidenceRefusedError, match=reason) as caught:
        check_logs(event_log, ima_log, pcrs)
    assert caught.value.check == 8


def test_no_log_is_no_reason_to_refuse() -> None:
    logs = check_logs(None, None, quoted())
    assert (logs.event_log, logs.ima, logs.notes) == (None, False, ())


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_logs_lead_to_recorded_values(name: str) -> None:
    logs = check_logs(recorded_bytes(name), vector(f"eventlog/{name}/ima-binary"), recorded_pcrs(name, ALL))
    assert logs.event_log == recorded(name)
    assert logs.ima
    assert logs.notes == ()


@pytest.mark.parametrize("pcr", [*range(8), 8, 9, 14])
def test_a_recorded_log_with_one_measurement_changed_does_not(pcr: int) -> None:
    """Each of the PCRs that the boot fills, one at a time."""
    log = recorded("uefi-secureboot")
    number = log.measured_into(pcr)[0].number

    def change(entries: list[Entry]) -> None:
        entries[number] = with_data(entries[number], b"something else")

    refused(
        to_bytes(changed(log, change)),
        None,
        recorded_pcrs("uefi-secureboot", ALL),
        rf"the event log does not lead to the quoted PCR {pcr} \(",
    )


@pytest.mark.parametrize("pcr", range(8))
def test_a_firmware_s_pcr_without_entries_must_have_its_first_value(pcr: int) -> None:
    others = [each for each in ENTRIES if each.pcr != pcr]
    assert check_logs(agile_log(*others), None, quoted(*others)).event_log is not None
    refused(agile_log(*others), None, quoted(*ENTRIES), rf"quoted PCR {pcr} \(")


@pytest.mark.parametrize("pcr", range(8, 16))
def test_what_was_measured_after_the_boot_is_in_no_log(pcr: int) -> None:
    """A PCR that the log has nothing about is judged by the policy alone."""
    later = entry(pcr, EventType.EV_IPL, b"later")
    assert check_logs(agile_log(*ENTRIES), None, quoted(*ENTRIES, later)).event_log is not None


@pytest.mark.parametrize("pcr", [8, 9, 14])
def test_a_boot_loader_s_pcr_with_entries_must_have_their_value(pcr: int) -> None:
    once = [*ENTRIES, entry(pcr, EventType.EV_IPL, b"once")]
    twice = [*once, entry(pcr, EventType.EV_IPL, b"twice")]
    assert check_logs(agile_log(*once), None, quoted(*once)).event_log is not None
    refused(agile_log(*once), None, quoted(*twice), rf"quoted PCR {pcr} \(")


@pytest.mark.parametrize("pcr", [11, 12, 13, 15])
def test_systemd_goes_on_where_its_boot_stub_began(pcr: int) -> None:
    once = [*ENTRIES, entry(pcr, EventType.EV_IPL, b"by the stub")]
    assert check_logs(agile_log(*once), None, quoted(*once, entry(pcr, EventType.EV_IPL, b"in the system"))).event_log


def test_all_pcrs_that_are_wrong_are_named() -> None:
    others = ENTRIES[1:7]
    refused(agile_log(*others), None, quoted(*ENTRIES), r"quoted PCRs 0 \(firmware\), 7 \(Secure Boot\)\n")


def test_a_log_of_the_older_format_explains_nothing() -> None:
    old = sha1_log(entry(0, EventType.EV_SEPARATOR, SEPARATOR, banks=["sha1"]))
    logs = check_logs(old, None, quoted(*ENTRIES))
    assert logs.event_log is None
    assert logs.notes == ("the event log has no digests for the PCR bank sha256: it explains nothing",)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_log_that_is_cut_off_is_refused(cut: int) -> None:
    refused(recorded_bytes("uefi")[:-cut], None, recorded_pcrs("uefi", ALL), "malformed event log")


def ima_entry(content: bytes) -> bytes:
    return file_entry("/bin/sh", content)


def ima_values(*contents: bytes) -> dict[str, dict[int, bytes]]:
    """The values after IMA measured these files."""
    log = parse_ima_log(b"".join(map(ima_entry, contents)))
    return {"sha256": quoted(*ENTRIES)["sha256"] | {10: replay_ima(log, "sha256")}}


def test_an_ima_list_may_have_gone_on_after_the_quote() -> None:
    one, two = ima_entry(b"1"), ima_entry(b"2")
    assert check_logs(None, one + two, ima_values(b"1", b"2")).ima
    assert check_logs(None, one + two, ima_values(b"1")).ima
    refused(None, one, ima_values(b"1", b"2"), r"the IMA list does not lead to the quoted PCR 10 \(files that IMA")
    refused(None, two + one, ima_values(b"1", b"2"), "does not lead to the quoted PCR 10")
    refused(None, one + two[:-1], ima_values(b"1"), "malformed IMA list")


def test_a_list_of_a_machine_whose_kernel_measures_nothing_excuses_nothing() -> None:
    """Else whoever switched IMA off would hide it by any list."""
    assert not check_logs(None, ima_entry(b"1"), quoted(*ENTRIES)).ima
    assert not check_logs(None, b"", quoted(*ENTRIES)).ima


def test_a_list_that_began_with_other_values_is_noted() -> None:
    values = recorded_pcrs("uefi", ALL)
    values["sha256"][8] = b"\1" * 32
    values["sha1"][5] = b"\1" * 20
    logs = check_logs(None, vector("eventlog/uefi/ima-binary"), values)
    assert logs.ima
    assert logs.notes == ("the IMA list began with other values of PCRs 0 to 9: one of them was extended since",)
