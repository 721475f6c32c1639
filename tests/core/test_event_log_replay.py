"""From event logs to PCR values: those that real TPMs had, and those that tpm2-tools compute."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import pytest

from support.event_logs import (
    BOOT_PCRS,
    RECORDED,
    changed,
    entry,
    locality_entry,
    made,
    recorded,
    recorded_pcrs,
    sha1_log,
    start_from,
    to_bytes,
    tpm2_eventlog,
)
from support.vectors import vector
from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log import EventType, Mismatch, mismatches, parse_event_log, replay, values_on_the_way
from tpm_mtls.structures import Quoted, parse_attest
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.event_log import Entry


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_log_leads_to_what_the_tpm_had_in_all_banks(name: str) -> None:
    log, values = recorded(name), recorded_pcrs(name)
    assert set(values) == set(log.banks)
    assert mismatches(log, values) == ()
    assert all(replay(log)[bank][pcr] == values[bank][pcr] for bank in values for pcr in log.pcrs)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_log_leads_to_what_the_tpm_quoted(name: str) -> None:
    """The quote is over PCR 10, too, into which IMA measured: that alone comes from elsewhere."""
    attest = parse_attest(vector(f"eventlog/{name}/quote.msg"))
    assert isinstance(attest.attested, Quoted)
    replayed, ima = replay(recorded(name)), recorded_pcrs(name, [10])
    values = [
        replayed[bank].get(pcr) or ima[bank].get(pcr) or bytes(hashlib.new(bank).digest_size)
        for bank, pcrs in attest.attested.selection
        for pcr in pcrs
    ]
    assert hashlib.sha256(b"".join(values)).digest() == attest.attested.digest


@pytest.mark.parametrize("name", RECORDED)
def test_tpm2_eventlog_agrees(name: str, tmp_path: Path) -> None:
    log = recorded(name)
    assert replay(log) == tpm2_eventlog(to_bytes(log), tmp_path)


@pytest.mark.parametrize("name", ["bios", "uefi", "uefi-secureboot"])
def test_tpm2_eventlog_agrees_about_the_older_format(name: str, tmp_path: Path) -> None:
    entries = [dataclasses.replace(each, digests={"sha1": each.digests["sha1"]}) for each in recorded(name).entries[1:]]
    data = sha1_log(*entries)
    assert replay(parse_event_log(data)) == tpm2_eventlog(data, tmp_path)
    assert mismatches(parse_event_log(data), {"sha1": recorded_pcrs(name)["sha1"]}) == ()


HARDWARE = b"measured by the hardware"


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_a_tpm_agrees_about_the_startup_locality(tpm: SimulatedTpm, locality: int) -> None:
    """tpm2_eventlog 5.4 does not: it extends PCR 0 with EV_NO_ACTION's zeros (tpm2-tools issue 3224)."""
    start_from(tpm, locality, HARDWARE)
    version = entry(0, EventType.EV_S_CRTM_VERSION, b"1")
    entries = [entry(0, EventType.EV_EFI_HCRTM_EVENT, b"HCRTM", measured=HARDWARE)] if locality == 4 else []
    log = made(locality_entry(locality), *entries, version)
    tpm.tool("tpm2_pcrextend", f"0:sha256={version.digests['sha256'].hex()}")

    with open_tpm(tpm.tcti) as opened:
        assert mismatches(log, {"sha256": opened.pcrs.read("sha256", range(8))}) == ()

    assert values_on_the_way(log, "sha256", 0)[0] == bytes(31) + bytes([locality])
    assert values_on_the_way(log, "sha256", 2) == [bytes(32)]


def wrong(entries_change: object) -> set[int]:
    """The PCRs that are wrong when something was done to the entries of a recorded log."""
    log = changed(recorded("uefi-secureboot"), entries_change)  # type: ignore[arg-type]  # a lambda's result
    found = mismatches(log, recorded_pcrs("uefi-secureboot"))
    assert {each.bank for each in found} in (set(), set(log.banks))
    return {each.pcr for each in found}


def test_whatever_is_done_to_what_was_measured_is_noticed_in_its_pcr() -> None:
    log = recorded("uefi-secureboot")
    assert wrong(list.copy) == set()
    for number, each in enumerate(log.entries[1:], 1):
        assert wrong(lambda entries, number=number: entries.pop(number)) == {each.pcr}
        assert wrong(lambda entries, number=number, each=each: entries.insert(number, each)) == {each.pcr}


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_a_bit_in_a_digest_is_noticed_in_its_bank(bank: str) -> None:
    def flip(entries: list[Entry]) -> None:
        digest = bytearray(entries[35].digests[bank])
        digest[-1] ^= 1
        entries[35] = dataclasses.replace(entries[35], digests={**entries[35].digests, bank: bytes(digest)})

    log, values = changed(recorded("uefi-secureboot"), flip), recorded_pcrs("uefi-secureboot")
    [found] = mismatches(log, values)
    assert found == Mismatch(bank, 4, replay(log)[bank][4], values[bank][4])


def test_a_lie_about_the_type_is_noticed_only_where_it_says_that_nothing_was_extended() -> None:
    def retype(number: int, event_type: int) -> object:
        return lambda entries: entries.insert(number, dataclasses.replace(entries.pop(number), type=event_type))

    assert wrong(retype(35, EventType.EV_NO_ACTION)) == {4}
    assert wrong(retype(35, EventType.EV_EFI_ACTION)) == set()


def test_the_order_is_noticed_within_a_pcr_only() -> None:
    assert wrong(lambda entries: entries.insert(4, entries.pop(5))) == {7}
    assert wrong(lambda entries: entries.insert(9, entries.pop(10))) == set()


def test_an_entry_that_extends_nothing_changes_nothing_but_a_startup_locality() -> None:
    banks = ("sha1", "sha256", "sha384", "sha512")
    note = dataclasses.replace(locality_entry(3, banks=banks), data=b"nothing")
    assert wrong(lambda entries: entries.insert(7, note)) == set()
    assert wrong(lambda entries: entries.insert(1, locality_entry(3, banks=banks))) == {0}


def test_a_pcr_without_entries_has_its_first_value() -> None:
    log, values = recorded("uefi"), recorded_pcrs("uefi", [*BOOT_PCRS, 8])
    assert mismatches(log, values) == ()
    values["sha256"][8] = bytes(31) + b"\1"
    assert mismatches(log, values) == (Mismatch("sha256", 8, bytes(32), bytes(31) + b"\1"),)


def test_a_bank_that_the_log_does_not_have_is_an_error() -> None:
    log = recorded("uefi-sha256only")
    with pytest.raises(EvidenceError, match="the event log has no digests for the PCR bank sha384"):
        mismatches(log, {"sha384": {}})
    with pytest.raises(EvidenceError, match="PCR bank sha1"):
        values_on_the_way(log, "sha1", 0)
