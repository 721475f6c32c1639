"""What differs between two event logs: found by digest, told in words."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from support.certificates import TestCa
from support.event_logs import (
    changed,
    entry,
    locality_entry,
    made,
    program_data,
    recorded,
    signature_list,
    variable_data,
    with_data,
    with_digest_of,
)
from tpm_mtls.errors import EvidenceError
from tpm_mtls.event_log import Change, ChangeKind, Component, EventLog, EventType, compare, replay
from tpm_mtls.event_log.content import variable

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.event_log import Entry

BASE = "uefi-secureboot"


STARTED = "the command line that the kernel was started with"


def after(number: int, new: Entry | None) -> tuple[Change, ...]:
    """What is told when one entry of a recorded log is another one, or gone."""

    def change(entries: list[Entry]) -> None:
        entries[number : number + 1] = [] if new is None else [new]

    log = recorded(BASE)
    return compare(log, changed(log, change))


def one(changes: tuple[Change, ...]) -> Change:
    [change] = changes
    return change


def test_two_recorded_boots() -> None:
    found = [(each.pcr, str(each)) for each in compare(recorded("uefi"), recorded(BASE))]
    expected = [
        (0, "firmware changed: firmware at 0x820000, 917504 bytes (sha256 4c251b0c52a3… → d95be795f29b…)"),
        (1, "boot order changed: boot order Boot0000 → boot order Boot0001, Boot0000, Boot0002"),
        (1, 'boot order appeared: boot option Boot0002 "EFI Internal Shell"'),
        (4, r"boot loader appeared: program \EFI\BOOT\BOOTX64.EFI"),
        (4, "kernel changed: program kernel → program without a file name"),
        (7, "Secure Boot changed: Secure Boot is off → Secure Boot is on"),
        (7, "Secure Boot changed: variable dbx; added 1 hash"),
        (7, "Secure Boot appeared: authority MokListRT: Debian Secure Boot CA"),
        (8, "boot loader's commands appeared: grub_cmd: boot"),
        (9, f"kernel command line changed: {STARTED} (sha256 d5f250183bb8… → d27360eb7a48…)"),
        (14, "machine owner's keys appeared: MokListX"),
    ]
    assert [each for each in found if each in expected] == expected
    assert len(found) == 27
    assert [pcr for pcr, _ in found] == sorted(pcr for pcr, _ in found)


def test_a_log_does_not_differ_from_itself() -> None:
    assert compare(recorded(BASE), recorded(BASE)) == ()


def test_two_processors_instead_of_one_change_the_firmware() -> None:
    found = one(compare(recorded("uefi"), recorded("uefi-sha256only")))
    assert (found.pcr, found.component, found.kind) == (0, Component.FIRMWARE, ChangeKind.CHANGED)


@pytest.mark.parametrize(
    ("number", "component", "text"),
    [
        (2, Component.FIRMWARE, "firmware at 0x820000, 917504 bytes (sha256 d95be795f29b… → "),
        (29, Component.BOOT_LOADER, r"program \EFI\BOOT\grubx64.efi (sha256 "),
        (35, Component.KERNEL, "program without a file name (sha256 "),
        (34, Component.KERNEL, "/vmlinuz (sha256 "),
        (38, Component.COMMAND_LINE, "the command line that the kernel was started with (sha256 "),
    ],
)
def test_another_version_of_a_part(number: int, component: Component, text: str) -> None:
    log = recorded(BASE)
    found = one(after(number, with_digest_of(log.entries[number], b"another version")))
    assert (found.kind, found.component, found.pcr) == (ChangeKind.CHANGED, component, log.entries[number].pcr)
    assert found.text.startswith(text)
    assert found.before == log.entries[number]
    assert found.after is not None
    assert found.after.number == number


def test_another_kernel_by_another_name_is_the_kernel_that_changed() -> None:
    old, new = (made(entry(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, program_data(path))) for path in KERNELS)
    assert str(one(compare(old, new))) == rf"kernel changed: program {KERNELS[0]} → program {KERNELS[1]}"


KERNELS = (r"\EFI\Linux\linux-6.12.efi", r"\EFI\Linux\linux-6.18.efi")


def test_another_command_line_is_shown() -> None:
    log = recorded(BASE)
    line = b"kernel_cmdline: /vmlinuz init=/bin/sh\0"
    found = one(after(36, with_data(log.entries[36], line)))
    assert found.component is Component.COMMAND_LINE
    assert found.text.endswith("init=/usr/local/sbin/guest-init → kernel_cmdline: /vmlinuz init=/bin/sh")


def test_secure_boot_switched_off() -> None:
    log = recorded(BASE)
    off = with_data(log.entries[4], variable_data("SecureBoot", b"\0"))
    assert str(one(after(4, off))) == "Secure Boot changed: Secure Boot is on → Secure Boot is off"


def test_certificates_and_hashes_that_were_added_and_removed(tmp_path: Path) -> None:
    log = recorded(BASE)
    old = variable(log.entries[7].data)
    assert old is not None
    root = TestCa(tmp_path, "machine").root.public_bytes(Encoding.DER)
    more = old.content + signature_list("x509", root) + signature_list("sha256", bytes(32), b"\1" * 32)
    added = one(after(7, with_data(log.entries[7], variable_data("db", more))))
    assert added.text == 'variable db; added certificate "machine root", 2 hashes'
    replaced = one(after(7, with_data(log.entries[7], variable_data("db", signature_list("x509", root)))))
    assert replaced.text == (
        'variable db; added certificate "machine root"; removed certificate "Microsoft Windows Production PCA 2011", '
        'certificate "Microsoft Corporation UEFI CA 2011"'
    )
    damaged = one(after(7, with_data(log.entries[7], variable_data("db", b"no list"))))
    assert damaged.text.endswith('"Microsoft Corporation UEFI CA 2011" → variable db, 7 bytes')
    reordered = one(after(7, with_digest_of(log.entries[7], b"the same words")))
    assert "(sha256 644aacf6f401… → " in reordered.text


def test_what_is_gone_and_what_is_new() -> None:
    log = recorded(BASE)
    gone = one(after(29, None))
    assert (gone.kind, gone.before, gone.after) == (ChangeKind.VANISHED, log.entries[29], None)
    assert str(gone) == r"boot loader vanished: program \EFI\BOOT\grubx64.efi"
    back = one(compare(changed(log, lambda entries: entries.pop(29)), log))
    assert (back.kind, back.before, back.after) == (ChangeKind.APPEARED, None, log.entries[29])


def test_a_measurement_that_comes_twice_appeared_once() -> None:
    log = recorded(BASE)
    found = one(compare(log, changed(log, lambda entries: entries.insert(31, entries[30]))))
    assert (found.kind, found.pcr) == (ChangeKind.APPEARED, 9)


def test_another_order_within_a_pcr_is_told_by_as_few_as_possible() -> None:
    log = recorded(BASE)
    found = one(compare(log, changed(log, lambda entries: entries.insert(8, entries.pop(4)))))
    assert str(found) == "Secure Boot moved: Secure Boot is on"
    assert compare(log, changed(log, lambda entries: entries.insert(9, entries.pop(10)))) == ()


def test_the_startup_locality() -> None:
    each = entry(0, EventType.EV_S_CRTM_VERSION, b"1")
    found = one(compare(made(each), made(locality_entry(3), each)))
    assert str(found) == "firmware changed: the TPM was started from locality 3 instead of 0"
    assert (found.pcr, found.before, found.after) == (0, None, None)


def test_what_extends_nothing_is_no_difference() -> None:
    log = made(entry(0, EventType.EV_S_CRTM_VERSION, b"1"))
    note = dataclasses.replace(locality_entry(3), data=b"anything")
    assert compare(log, changed(log, lambda entries: entries.append(note))) == ()


def test_a_type_or_words_that_are_others_are_no_difference() -> None:
    """They are not measured: whoever wrote the log may call things as he likes."""
    log = recorded(BASE)
    assert after(35, dataclasses.replace(log.entries[35], type=EventType.EV_IPL, data=b"other words")) == ()


def test_logs_must_have_a_bank_in_common() -> None:
    sha1 = made(entry(0, 8, b"", banks=("sha1",)), banks=("sha1",))
    with pytest.raises(EvidenceError, match="the two event logs have no PCR bank in common"):
        compare(sha1, recorded("uefi-sha256only"))
    assert compare(sha1, made(entry(0, 8, b"", banks=("sha1", "sha256")), banks=("sha1", "sha256"))) == ()


def test_without_sha256_another_bank_tells_digests_apart() -> None:
    old, new = (
        made(
            entry(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, program_data("a"), measured=each, banks=("sha384",)),
            banks=("sha384",),
        )
        for each in (b"1", b"2")
    )
    assert one(compare(old, new)).text.startswith("program a (sha384 ")


ENTRIES = st.lists(
    st.builds(
        entry,
        st.integers(0, 3),
        st.sampled_from([EventType.EV_IPL, EventType.EV_SEPARATOR, EventType.EV_NO_ACTION, EventType.EV_EFI_ACTION]),
        st.sampled_from([b"a", b"b", b"kernel_cmdline: x", b"grub_cmd: y"]),
        measured=st.sampled_from([b"1", b"2", b"3"]),
    ),
    max_size=12,
)


@given(ENTRIES, ENTRIES)
def test_logs_differ_in_a_pcr_just_where_they_lead_to_other_values(old: list[Entry], new: list[Entry]) -> None:
    before, later = made(*old), made(*new)
    changes = compare(before, later)
    values = [replay(log)["sha256"] for log in (before, later)]
    assert {each.pcr for each in changes} == {pcr for pcr in range(4) if values[0].get(pcr) != values[1].get(pcr)}
    assert apply_changes(before, changes) == measured(later)


def measured(log: EventLog) -> dict[int, list[bytes]]:
    return {
        pcr: sorted(each.digests["sha256"] for each in log.measured_into(pcr)) for pcr in range(4) if pcr in log.pcrs
    }


def apply_changes(log: EventLog, changes: tuple[Change, ...]) -> dict[int, list[bytes]]:
    """What is measured into each PCR after the changes, whatever the order: nothing was forgotten or invented."""
    found = {pcr: [each.digests["sha256"] for each in log.measured_into(pcr)] for pcr in range(4)}
    for change in changes:
        if change.before is not None:
            found[change.pcr].remove(change.before.digests["sha256"])
        if change.after is not None:
            found[change.pcr].append(change.after.digests["sha256"])
    return {pcr: sorted(digests) for pcr, digests in found.items() if digests}
