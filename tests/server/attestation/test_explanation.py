"""What a field engineer reads: which part of the boot changed, and how far that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.event_logs import agile_log, changed, entry, program_data, recorded, to_bytes, values_of, with_digest_of
from support.judgements import NOW
from tpm_mtls.attestation.messages import CHECKS
from tpm_mtls.event_log import EventLog, EventType
from tpm_mtls_server.attestation import BootState, Learn
from tpm_mtls_server.attestation.explanation import LINES_LIMIT, components, explain_differences, lines
from tpm_mtls_server.attestation.policy import judge_policy
from tpm_mtls_server.attestation.words import listed, named_pcrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls.event_log import Entry
    from tpm_mtls.pcr.explain import Explanation

ALL = range(16)


def state(log: EventLog, **pcrs: bytes) -> BootState:
    """What a machine with ``log`` booted."""
    values = {pcr: bytes(32) for pcr in ALL} | dict(values_of(log)) | {int(key[3:]): pcrs[key] for key in pcrs}
    return BootState({"sha256": values}, to_bytes(log), NOW)


def explained(before: BootState, now: BootState, log: EventLog | None) -> tuple[Explanation, ...]:
    finding = judge_policy(Learn(), now.pcrs, before, ima=False)
    return explain_differences(finding.differs, log, before)


def after(change: Callable[[list[Entry]], object], name: str = "uefi-secureboot") -> tuple[Explanation, ...]:
    """Why a recorded machine is refused after ``change`` happened to its boot."""
    log = changed(recorded(name), change)
    return explained(state(recorded(name)), state(log), log)


def another(component: str, pcr: int, word: str) -> Callable[[list[Entry]], object]:
    """Something else was measured where the log says ``word``."""

    def change(entries: list[Entry]) -> None:
        for number, each in enumerate(entries):
            if each.pcr == pcr and (word.encode() in each.data or word.encode("utf-16-le") in each.data):
                entries[number] = with_digest_of(each, component.encode())
                return
        raise LookupError(word)

    return change


@pytest.mark.parametrize(
    ("component", "pcr", "word"),
    [
        ("boot loader", 4, "BOOTX64"),
        ("boot loader", 4, "grubx64.efi"),
        ("Secure Boot", 7, "SecureBoot"),
        ("Secure Boot", 7, "dbx"),
        ("kernel", 9, "vmlinuz"),
        ("kernel command line", 8, "kernel_cmdline"),
        ("boot loader's commands", 8, "grub_cmd"),
        ("machine owner's keys", 14, "MokList"),
    ],
)
def test_the_part_that_changed_is_named(component: str, pcr: int, word: str) -> None:
    explanations = after(another(component, pcr, word))
    assert components(explanations) == (component,)
    text = lines(explanations)
    assert text[0].startswith(f"PCR {pcr} (sha256), ")
    assert any(line.startswith(f"    {component} changed: ") for line in text)
    assert "these differences between the two event logs explain it" in text[3]


def test_what_appeared_and_what_vanished_is_told() -> None:
    driver = entry(2, EventType.EV_EFI_BOOT_SERVICES_DRIVER, program_data("\\evil.efi"), banks=recorded("uefi").banks)
    assert any(
        line == r"    option ROMs and drivers appeared: program \evil.efi"
        for line in lines(after(lambda log: log.append(driver)))
    )
    vanished = after(lambda log: log.pop())
    assert any(" vanished: " in line for line in lines(vanished))


def test_what_is_explained_comes_before_what_is_not() -> None:
    log = changed(recorded("uefi-secureboot"), another("x", 4, "grubx64.efi"))
    explanations = explained(state(recorded("uefi-secureboot")), state(log, pcr1=b"\1" * 32, pcr11=b"\1" * 32), log)
    assert [each.differs.pcr for each in explanations] == [4, 1, 11]
    assert "afterwards something was measured" in str(explanations[1])


def test_without_logs_the_pcr_tells_the_part() -> None:
    before, now = state(recorded("uefi")), state(recorded("uefi"), pcr7=b"\1" * 32)
    explanations = explained(before, now, None)
    assert components(explanations) == ("Secure Boot",)
    assert lines(explanations)[-1] == "  no event log to explain it"
    kept_none = BootState(before.pcrs, None, NOW)
    changed_log = changed(recorded("uefi"), lambda log: log.pop())
    one_sided = explained(kept_none, state(changed_log), changed_log)
    assert "these measurements led to the present one" in str(one_sided[0])


@pytest.mark.parametrize("kept", [b"", b"no log", agile_log(entry(0, 4, b"x", banks=["sha1"]), banks=["sha1"])])
def test_a_kept_log_that_cannot_be_compared_is_as_none(kept: bytes) -> None:
    log = recorded("uefi")
    now = state(changed(log, lambda entries: entries.pop()))
    before = BootState(state(log).pcrs, kept, NOW)
    assert explained(before, now, changed(log, lambda entries: entries.pop())) != ()


def test_the_longest_logs_make_no_endless_answer() -> None:
    many = [
        entry(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, program_data(f"\\{n}" + "x" * 250)) for n in range(900)
    ]
    log, other = (
        changed(recorded("uefi-sha256only"), lambda log, some=some: log.extend(some)) for some in (many, many[:1])
    )
    text = lines(explained(state(other), state(log), log))
    assert text[-1] == "    … and 703 more"
    assert sum(map(len, text)) <= LINES_LIMIT + 100
    assert all(len(line) <= 2048 for line in text)


def test_words() -> None:
    assert named_pcrs([7, 4, 4]) == "PCRs 4 (boot loader), 7 (Secure Boot)"
    assert named_pcrs([23]) == "PCR 23 (other)"
    assert listed(["ab", "cd", "e"], limit=4) == ("ab", "cd", "… and 1 more")
    assert listed(["ab", "cd"], limit=4) == ("ab", "cd")
    assert sorted(CHECKS) == list(range(1, 10))
