"""Reading event logs: recorded ones, both formats, and what is wrong with others."""

from __future__ import annotations

import dataclasses
import re
import struct
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.event_logs import (
    RECORDED,
    agile_entry,
    agile_log,
    entry,
    first_entry,
    locality_entry,
    recorded_bytes,
    sha1_entry,
    sha1_log,
    spec_id,
    to_bytes,
)
from support.vectors import vector
from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log import LOG_LIMIT, EventType, compare, describe, parse_event_log, replay

SEPARATOR = entry(7, EventType.EV_SEPARATOR, bytes(4))
SHA256 = (0x000B, 32)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_log_says_what_tpm2_eventlog_reads_in_it(name: str) -> None:
    listing = vector(f"eventlog/{name}/eventlog.yaml").decode()
    log = parse_event_log(recorded_bytes(name))

    assert [each.pcr for each in log.entries] == [int(pcr) for pcr in re.findall(r"  PCRIndex: (\d+)", listing)]
    assert [each.type_name for each in log.entries] == re.findall(r"  EventType: (\w+)", listing)
    assert [len(each.data) for each in log.entries] == [
        int(size) for size in re.findall(r"  EventSize: (\d+)", listing)
    ]
    digests = [digest.hex() for each in log.entries[1:] for digest in each.digests.values()]
    assert digests == re.findall(r'    Digest: "(\w+)"', listing)
    assert log.crypto_agile
    assert [each.number for each in log.entries] == list(range(len(log.entries)))


@pytest.mark.parametrize("name", RECORDED)
def test_nothing_of_a_recorded_log_is_lost(name: str) -> None:
    assert to_bytes(parse_event_log(recorded_bytes(name))) == recorded_bytes(name)


def test_the_older_format_has_one_bank() -> None:
    entries = [entry(4, EventType.EV_IPL, b"boot", banks=("sha1",)), entry(5, 0x99, b"", banks=("sha1",))]
    log = parse_event_log(sha1_log(*entries))
    assert (log.banks, log.crypto_agile, log.pcrs) == (("sha1",), False, (4, 5))
    assert [(each.pcr, each.type, each.digests, each.data) for each in log.entries] == [
        (each.pcr, each.type, each.digests, each.data) for each in entries
    ]
    assert log.entries[1].type_name == "0x00000099"


def test_an_older_spec_id_means_the_older_format() -> None:
    data = first_entry(spec_id(signature=b"Spec ID Event02\0")) + sha1_entry(entry(0, 8, b"1", banks=("sha1",)))
    assert not parse_event_log(data).crypto_agile


def test_a_bank_with_an_unknown_hash_is_read_over() -> None:
    each = dataclasses.replace(SEPARATOR, digests={"0x0012": bytes(32), **SEPARATOR.digests})
    log = parse_event_log(agile_log(each, banks=("0x0012", "sha256")))
    assert log.banks == ("sha256",)
    assert log.entries[1].digests["0x0012"] == bytes(32)
    assert set(replay(log)) == {"sha256"}


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_the_startup_locality_is_found(locality: int) -> None:
    assert parse_event_log(agile_log(locality_entry(locality), SEPARATOR)).startup_locality == locality


def test_a_startup_locality_elsewhere_does_not_count() -> None:
    """In another PCR, or with another type, it is an entry like others."""
    other = dataclasses.replace(locality_entry(3), type=EventType.EV_IPL)
    assert parse_event_log(agile_log(locality_entry(3, pcr=1), other)).startup_locality == 0


CRTM = entry(0, EventType.EV_S_CRTM_VERSION, b"1")
HUGE = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it ends after 0 bytes"),
        (bytes(31), "it ends after 31 bytes"),
        (agile_log(SEPARATOR) + b"\0", "it ends after"),
        (agile_log(SEPARATOR)[:-1], "it ends after"),
        (bytes(LOG_LIMIT + 1), f"an event log of more than {LOG_LIMIT} bytes"),
        (first_entry(spec_id()), "it is for 0 hashes"),
        (first_entry(spec_id(*[(number, 1) for number in range(0x100, 0x111)])), "it is for 17 hashes"),
        (first_entry(spec_id(SHA256, SHA256)), "the hash sha256 comes twice"),
        (first_entry(spec_id((0x000B, 20))), "the hash sha256 comes twice, or has no digests of 20 bytes"),
        (first_entry(spec_id((0x0012, 32), (0x0027, 32))), "hashes that are not known here: 0x0012, 0x0027"),
        (first_entry(spec_id((0x0012, 0))), "the hash 0x0012 comes twice, or has no digests of 0 bytes"),
        (first_entry(spec_id((0x0012, 65))), "the hash 0x0012 comes twice, or has no digests of 65 bytes"),
        (first_entry(spec_id(SHA256) + b"\0"), "malformed event log's Spec ID: 1 bytes too many"),
        (first_entry(spec_id(SHA256, vendor=b"12")[:-1]), "malformed event log's Spec ID: it ends after"),
        (first_entry(spec_id(SHA256)[:20]), "malformed event log's Spec ID: it ends after"),
        (agile_log(SEPARATOR, banks=("sha256", "sha1")), "entry 1 has 1 digests, but the log is for 2 hashes"),
        (agile_log(SEPARATOR, banks=("sha1",)), "entry 1 has a digest too many, of the hash sha256"),
        (agile_log(dataclasses.replace(SEPARATOR, pcr=24)), "entry 1 is for PCR 24"),
        (agile_log(dataclasses.replace(SEPARATOR, pcr=HUGE)), "entry 1 is for PCR 4294967295"),
        (sha1_log(entry(24, 8, b"", banks=("sha1",))), "entry 0 is for PCR 24"),
        (agile_log() + struct.pack("<III", 0, 8, HUGE), f"entry 1 has {HUGE} digests"),
        (agile_log() + agile_entry(SEPARATOR)[:-8] + struct.pack("<I", HUGE), "it ends after"),
        (agile_log(locality_entry(0), locality_entry(0)), "entry 2 is no startup locality, a second one"),
        (agile_log(locality_entry(1)), "entry 1 is no startup locality"),
        (
            agile_log(dataclasses.replace(locality_entry(3), data=b"StartupLocality\0")),
            "entry 1 is no startup locality",
        ),
        (
            agile_log(dataclasses.replace(locality_entry(3), data=b"StartupLocality\0\3\0")),
            "entry 1 is no startup locality",
        ),
        (agile_log(CRTM, locality_entry(3)), "entry 2 is no startup locality, a second one, or comes too late"),
    ],
)
def test_what_is_malformed_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape(message)):
        parse_event_log(data)


def test_a_digest_that_comes_twice_is_refused() -> None:
    twice = agile_entry(SEPARATOR).replace(struct.pack("<I", 1), struct.pack("<I", 2), 1)
    digest = struct.pack("<H", 0x000B) + SEPARATOR.digests["sha256"]
    data = first_entry(spec_id(SHA256, (0x0004, 20))) + twice.replace(digest, digest * 2)
    with pytest.raises(EvidenceError, match="entry 1 has a digest too many, of the hash sha256"):
        parse_event_log(data)


def test_a_log_that_ends_in_an_entry_is_refused_wherever_it_ends() -> None:
    data = recorded_bytes("uefi-sha256only")
    whole = set()
    for length in range(len(data)):
        try:
            log = parse_event_log(data[:length])
        except EvidenceError:
            continue
        whole.add(len(log.entries))
        assert to_bytes(log) == data[:length]
    assert whole == set(range(1, 24))


def everything(data: bytes) -> None:
    """Reads ``data`` as a log, and everything that can be said about it."""
    try:
        log = parse_event_log(data)
    except EvidenceError:
        return
    for each in log.entries:
        about = describe(each)
        assert about.text.isprintable()
    replay(log)
    assert compare(log, log) == ()
    empty = dataclasses.replace(log, entries=(), startup_locality=0)
    assert len(compare(empty, log)) == sum(each.extends for each in log.entries) + (log.startup_locality != 0)


@given(st.binary(max_size=400))
def test_whatever_the_bytes_only_its_own_error_is_raised(data: bytes) -> None:
    everything(data)
    everything(first_entry(spec_id(SHA256)) + data)
    everything(first_entry(data))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_becomes_of_a_recorded_log_only_its_own_error_is_raised(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(RECORDED))
    changed = bytearray(recorded_bytes(name))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(changed) - 1))
        new = data.draw(st.binary(max_size=8))
        changed[at : at + data.draw(st.sampled_from([len(new), 0, 4]))] = new
    everything(bytes(changed))


TYPES = st.sampled_from(list(EventType)) | st.integers(0, HUGE)


@given(TYPES, st.integers(0, 23), st.binary(max_size=200))
@example(EventType.EV_EFI_VARIABLE_BOOT, 1, b"")
def test_any_data_can_be_described(event_type: int, pcr: int, data: bytes) -> None:
    everything(agile_log(entry(pcr, event_type, data)))


def test_the_largest_log_is_read_at_once() -> None:
    """As many entries as fit into the limit: no step takes more than linear time, or nearly so."""
    many = [entry(number % 24, EventType.EV_EFI_VARIABLE_BOOT, b"") for number in range(24)]
    block = b"".join(map(agile_entry, many))
    data = agile_log() + block * ((LOG_LIMIT - 100) // len(block))
    began = time.process_time()
    log = parse_event_log(data)
    replay(log)
    other = dataclasses.replace(log, entries=log.entries[:1] + log.entries[:0:-1])
    compare(log, other)
    assert len(log.entries) > 15_000
    assert time.process_time() - began < 10
