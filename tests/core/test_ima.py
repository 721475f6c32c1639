"""IMA's measurement list: recorded ones, made ones of each template, and what is none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.event_logs import RECORDED, recorded_pcrs
from support.ima_lists import digest_field, entry, field, file_entry, name_field, oldest_entry, sha1
from support.vectors import vector
from tpm_mtls.errors import EvidenceError
from tpm_mtls.ima import (
    IMA_LOG_LIMIT,
    BootAggregate,
    boot_aggregate,
    entries_behind,
    parse_ima_log,
    replay_ima,
)

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

DIGEST = hashlib.sha256(b"content").digest()
SHA1 = sha1(b"content")
BANKS = ("sha1", "sha256", "sha384", "sha512")
FILES = b"".join(file_entry(f"/bin/{name}", name.encode()) for name in "abc")


def recorded_list(name: str) -> bytes:
    return vector(f"eventlog/{name}/ima-binary")


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_list_leads_to_the_recorded_pcr_in_every_bank(name: str) -> None:
    log = parse_ima_log(recorded_list(name))
    values = recorded_pcrs(name, range(24))
    for bank in values:
        assert replay_ima(log, bank) == values[bank][10]
        assert entries_behind(log, bank, values[bank][10]) == log.entries
    assert boot_aggregate(log, values) is BootAggregate.MATCHES
    assert boot_aggregate(log, {"sha256": values["sha256"]}) is BootAggregate.MATCHES


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_list_says_what_the_kernel_says_in_text(name: str) -> None:
    """The ``ascii_runtime_measurements`` of the same moment."""
    lines = [
        f"{found.pcr} {sha1(found.data).hex()} {found.template} {found.algorithm}:{found.digest.hex()} {found.path}"
        for found in parse_ima_log(recorded_list(name)).entries
    ]
    assert lines == [line.rstrip() for line in vector(f"eventlog/{name}/ima-ascii").decode().splitlines()]


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("ima-ng", [digest_field(DIGEST), name_field("/bin/sh")]),
        ("ima-ngv2", [digest_field(DIGEST, kind="verity"), name_field("/bin/sh")]),
        ("ima-sig", [digest_field(DIGEST), name_field("/bin/sh"), b"\x03signature"]),
        ("ima-sigv2", [digest_field(DIGEST, kind="ima"), name_field("/bin/sh"), b""]),
        ("ima-buf", [digest_field(DIGEST), name_field("/bin/sh"), b"key"]),
        ("ima-modsig", [digest_field(DIGEST), name_field("/bin/sh"), b"", digest_field(SHA1, "sha1"), b"signature"]),
        ("evm-sig", [digest_field(DIGEST), name_field("/bin/sh"), *[b"x"] * 7]),
        ("d-ng|n-ng|sig|iuid", [digest_field(DIGEST), name_field("/bin/sh"), b"", b"\0\0"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_template_is_read_and_replayed(template: str, fields: list[bytes]) -> None:
    log = parse_ima_log(entry(template, *fields))
    (found,) = log.entries
    assert (found.pcr, found.template, found.path, found.algorithm, found.digest, found.violation) == (
        *(10, template, "/bin/sh"),
        *("sha256", DIGEST, False),
    )
    data = b"".join(map(field, fields))
    for bank in BANKS:
        size = hashlib.new(bank).digest_size
        assert replay_ima(log, bank) == hashlib.new(bank, bytes(size) + hashlib.new(bank, data).digest()).digest()
    with pytest.raises(EvidenceError, match="malformed IMA list: entry 0: "):
        parse_ima_log(entry(template, *fields, b""))
    with pytest.raises(EvidenceError, match="malformed IMA list: entry 0: it ends too early"):
        parse_ima_log(entry(template, *fields[:-1]))


def test_the_oldest_template_pads_the_name_and_has_no_sizes() -> None:
    """Linux, ima_calc_field_array_hash_tfm: SHA-1 of the file's digest and of 256 bytes."""
    log = parse_ima_log(oldest_entry("boot_aggregate", SHA1) + oldest_entry("/init", SHA1))
    assert [(found.path, found.algorithm, found.digest) for found in log.entries] == [
        ("boot_aggregate", "sha1", SHA1),
        ("/init", "sha1", SHA1),
    ]
    assert log.entries[1].data == SHA1 + b"/init".ljust(256, b"\0")
    with pytest.raises(EvidenceError, match="a file's name of 256 bytes"):
        parse_ima_log(oldest_entry("x" * 256, SHA1))


def test_a_format_with_the_oldest_digest_is_read() -> None:
    (found,) = parse_ima_log(entry("d|n", SHA1, b"/init")).entries
    assert (found.path, found.algorithm, found.digest) == ("/init", "sha1", SHA1)


@pytest.mark.parametrize(
    ("template", "path", "digest"),
    [
        ("ima-sig", "/bin/evil", DIGEST),
        ("d-ng|n-ng|buf", "/bin/evil", DIGEST),
        ("d|n|sig", "/bin/evil", b""),
        ("d-ng|sig|n-ng", "", b""),
        ("sig|d-ng|n-ng", "", b""),
        ("x|y|z", "", b""),
        ("|", "", b""),
        ("ima-new", "", b""),
    ],
)
def test_the_template_s_name_is_not_measured_so_it_cannot_put_another_field_in_place(
    template: str, path: str, digest: bytes
) -> None:
    fields = (digest_field(DIGEST), name_field("/bin/evil"), name_field("/bin/good"))
    true, lie = (parse_ima_log(entry(name, *fields)) for name in ("ima-sig", template))
    assert replay_ima(lie, "sha256") == replay_ima(true, "sha256")
    assert (lie.entries[0].path, lie.entries[0].digest) == (path, digest)


def test_an_unknown_template_is_replayed_but_says_nothing() -> None:
    log = parse_ima_log(entry("new-one", b"anything") + FILES)
    found = log.entries[0]
    assert (found.path, found.algorithm, found.digest) == ("", "", b"")
    assert entries_behind(log, "sha256", replay_ima(log, "sha256")) == log.entries


def test_a_digest_that_does_not_say_its_hash_is_none() -> None:
    (found,) = parse_ima_log(entry("ima-ng", b"sha256" + DIGEST, name_field("/a"))).entries
    assert (found.path, found.algorithm, found.digest) == ("/a", "", b"")


def test_a_name_that_is_not_utf_8_is_escaped() -> None:
    (found,) = parse_ima_log(entry("ima-ng", digest_field(DIGEST), b"/a\xff\0")).entries
    assert found.path == "/a\\xff"


def test_a_list_of_a_big_endian_machine_is_read() -> None:
    log = parse_ima_log(
        entry("ima-ng", digest_field(DIGEST), name_field("/a"), order="big")
        + entry("ima-sig", digest_field(DIGEST), name_field("/b"), b"", order="big")
    )
    assert [found.path for found in log.entries] == ["/a", "/b"]


@pytest.mark.parametrize("bank", BANKS)
def test_a_violation_extends_ones(bank: str) -> None:
    log = parse_ima_log(FILES + file_entry("/var/log/x", violation=True))
    before = replay_ima(parse_ima_log(FILES), bank)
    assert log.entries[-1].violation
    assert (log.entries[-1].path, log.entries[-1].digest) == ("/var/log/x", b"")
    assert replay_ima(log, bank) == hashlib.new(bank, before + b"\xff" * len(before)).digest()


def test_a_list_that_goes_on_behind_the_quoted_value_is_cut_there() -> None:
    value = replay_ima(parse_ima_log(FILES), "sha256")
    log = parse_ima_log(FILES + file_entry("/bin/later"))
    found = entries_behind(log, "sha256", value)
    assert found == log.entries[:3]
    assert entries_behind(log, "sha256", bytes(32)) == ()
    assert entries_behind(log, "sha256", b"\x01" * 32) is None
    assert entries_behind(parse_ima_log(b""), "sha256", value) is None


@pytest.mark.parametrize("at", range(3))
def test_a_changed_vanished_or_exchanged_entry_leads_elsewhere(at: int) -> None:
    entries = [file_entry(f"/bin/{name}", name.encode()) for name in "abc"]
    value = replay_ima(parse_ima_log(b"".join(entries)), "sha256")
    assert entries_behind(parse_ima_log(b"".join(entries)), "sha256", value)
    changed = [*entries[:at], file_entry("/bin/other"), *entries[at + 1 :]]
    vanished = entries[:at] + entries[at + 1 :]
    exchanged = entries[at:] + entries[:at] if at else entries[::-1]
    for wrong in (changed, vanished, exchanged):
        assert entries_behind(parse_ima_log(b"".join(wrong)), "sha256", value) is None


def test_entries_for_other_pcrs_stand_apart() -> None:
    log = parse_ima_log(file_entry("/a") + file_entry("/b", pcr=11) + file_entry("/c"))
    alone = parse_ima_log(file_entry("/a") + file_entry("/c"))
    value = replay_ima(alone, "sha256")
    assert [found.path for found in entries_behind(log, "sha256", value) or ()] == ["/a", "/c"]
    only = replay_ima(log, "sha256", pcr=11)
    assert [found.path for found in entries_behind(log, "sha256", only, pcr=11) or ()] == ["/b"]


def test_a_tpm_extended_as_linux_did_before_5_8_is_recognized(tpm: SimulatedTpm) -> None:
    """SHA-1 with zeros behind it in the bank sha256; a real TPM computes the value."""
    log = parse_ima_log(FILES + file_entry("/x", violation=True))
    for found in log.entries:
        padded = found.extended("sha256", padded=True)
        assert found.violation or padded == sha1(found.data) + bytes(12)
        tpm.tool("tpm2_pcrextend", f"10:sha256={padded.hex()}")
    value = bytes.fromhex(tpm.tool("tpm2_pcrread", "sha256:10").stdout.rpartition("0x")[2].strip())
    assert entries_behind(log, "sha256", value) == log.entries
    assert replay_ima(log, "sha256", padded=True) == value != replay_ima(log, "sha256")


# -- boot_aggregate ---------------------------------------------------------------------------------------------------

VALUES = {
    "sha256": {pcr: bytes([pcr]) * 32 for pcr in range(16)},
    "sha1": {pcr: bytes([pcr]) * 20 for pcr in range(16)},
}


def aggregate(bank: str, last: int) -> bytes:
    digest = hashlib.new(bank, b"".join(VALUES[bank][pcr] for pcr in range(last + 1))).digest()
    return entry("ima-ng", digest_field(digest, bank), name_field("boot_aggregate"))


@pytest.mark.parametrize(
    ("bank", "last", "expected"),
    [
        ("sha256", 9, BootAggregate.MATCHES),
        ("sha256", 7, BootAggregate.MATCHES),
        ("sha256", 8, BootAggregate.DIFFERS),
        ("sha1", 7, BootAggregate.MATCHES),
        ("sha1", 9, BootAggregate.DIFFERS),
    ],
)
def test_the_boot_aggregate_is_of_pcrs_0_to_9_or_of_0_to_7(bank: str, last: int, expected: BootAggregate) -> None:
    assert boot_aggregate(parse_ima_log(aggregate(bank, last) + FILES), VALUES) is expected


@pytest.mark.parametrize("pcr", range(10))
def test_each_pcr_of_the_boot_counts(pcr: int) -> None:
    log = parse_ima_log(aggregate("sha256", 9))
    other = {"sha256": VALUES["sha256"] | {pcr: bytes(32)}} if pcr else {"sha256": VALUES["sha256"] | {0: b"\x01" * 32}}
    assert boot_aggregate(log, other) is BootAggregate.DIFFERS


def test_a_boot_aggregate_that_cannot_be_judged_is_unknown() -> None:
    log = parse_ima_log(aggregate("sha256", 9))
    assert boot_aggregate(log, {"sha1": VALUES["sha1"]}) is BootAggregate.UNKNOWN
    assert boot_aggregate(log, {"sha256": {0: bytes(32)}}) is BootAggregate.UNKNOWN
    assert boot_aggregate(parse_ima_log(b""), VALUES) is BootAggregate.UNKNOWN
    assert boot_aggregate(parse_ima_log(FILES), VALUES) is BootAggregate.UNKNOWN
    assert boot_aggregate(parse_ima_log(file_entry("boot_aggregate", violation=True)), VALUES) is BootAggregate.UNKNOWN
    whole = entry("ima-ng", digest_field(DIGEST, "md5x"), name_field("boot_aggregate"))
    assert boot_aggregate(parse_ima_log(whole), VALUES) is BootAggregate.UNKNOWN


def test_values_of_0_to_7_only_are_judged_by_these() -> None:
    values = {"sha256": {pcr: VALUES["sha256"][pcr] for pcr in range(8)}}
    assert boot_aggregate(parse_ima_log(aggregate("sha256", 7)), values) is BootAggregate.MATCHES


# -- what is no list --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (FILES + file_entry("/x", pcr=24), "entry 3: PCR 24"),
        (entry("x" * 256, b""), "a template's name of 256 bytes"),
        (entry("", b""), "a template's name of 0 bytes"),
        (entry("a b", b""), "a template's name of 3 bytes"),
        (entry("ima-ng", digest_field(DIGEST), name_field("/a"), digest=b"\x01" * 20), "its digest is not that of its"),
        (FILES + b"\0", "entry 3: it ends too early"),
        (b"\x0a\0\0\0" + bytes(20) + b"\xff\xff\xff\xff", "entry 0: it ends too early"),
        (bytes(IMA_LOG_LIMIT + 1), f"more than {IMA_LOG_LIMIT} bytes"),
    ],
    ids=range(8),
)
def test_anything_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        parse_ima_log(data)


def test_every_truncation_is_refused_or_ends_between_entries() -> None:
    sizes = {0, *(len(FILES) // 3 * count for count in range(4))}
    for length in range(len(FILES)):
        if length in sizes:
            parse_ima_log(FILES[:length])
            continue
        with pytest.raises(EvidenceError, match="it ends too early"):
            parse_ima_log(FILES[:length])


@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda tail: FILES + tail))
def test_any_bytes_are_a_list_or_our_error(data: bytes) -> None:
    try:
        log = parse_ima_log(data)
    except EvidenceError:
        return
    assert bool(log.entries) is bool(data)


@given(st.data())
def test_damage_raises_our_error_or_leads_elsewhere_or_hides_what_was_measured(draw: st.DataObject) -> None:
    good = recorded_list("uefi-secureboot") + oldest_entry("/init", SHA1)
    value = replay_ima(parse_ima_log(good), "sha256")
    at = draw.draw(st.integers(0, len(good) - 1))
    wrong = draw.draw(st.binary(min_size=1, max_size=4))
    damaged = (good[:at] + wrong + good[at + len(wrong) :])[: len(good)]
    try:
        log = parse_ima_log(damaged)
    except EvidenceError:
        return
    found = entries_behind(log, "sha256", value)
    if found is None:
        return
    for each, true in zip(found, parse_ima_log(good).entries, strict=True):
        assert each.data == true.data
        assert (each.path, each.algorithm, each.digest) in {
            (true.path, true.algorithm, true.digest),
            (true.path, "", b""),
            ("", "", b""),
        }


@given(
    st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=20), st.booleans()), max_size=10), st.integers(0, 10)
)
def test_every_beginning_of_a_list_is_found(files: list[tuple[str, bytes, bool]], count: int) -> None:
    entries = [file_entry(path.replace("\0", ""), content, violation=violated) for path, content, violated in files]
    log = parse_ima_log(b"".join(entries))
    value = replay_ima(parse_ima_log(b"".join(entries[:count])), "sha256")
    assert entries_behind(log, "sha256", value) == log.entries[:count]
