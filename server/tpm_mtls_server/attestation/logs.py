"""Check 8: the logs that came with a quote lead to the PCR values that were quoted. Pure.

A log may be missing: not all firmware keeps one, and only root may read the kernel's. Then PCR values stand for
themselves, and nothing explains them. But one that is sent must be true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.attestation.quote_checks import BANK
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls.event_log import mismatches, parse_event_log
from tpm_mtls.evidence_checks import numbered
from tpm_mtls.ima import IMA_PCR, BootAggregate, boot_aggregate, entries_behind, parse_ima_log
from tpm_mtls_server.attestation.words import named_pcrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpm_mtls.event_log import EventLog

FIRMWARE_PCRS: Final = range(8)
"""PCRs that only the firmware and its boot loaders extend: TCG PC Client Platform Firmware Profile 1.05, 3.3.4."""

BOOT_LOADER_PCRS: Final = (8, 9, 14)
"""PCRs of GRUB, the kernel's EFI stub and shim: judged where the log has entries for them. Systemd extends 11 to 13 and
15 after the boot, IMA 10; those are in no boot's log (Linux TPM PCR Registry of the UAPI group)."""


@dataclass(frozen=True)
class Logs:
    """Logs that passed check 8.

    Attributes:
        event_log: the event log; none if there is none that can be replayed.
        ima: whether an IMA list leads to PCR 10.
        notes: what is worth knowing and no reason to refuse; for people.
    """

    event_log: EventLog | None
    ima: bool
    notes: tuple[str, ...]


def check_logs(event_log: bytes | None, ima_log: bytes | None, pcrs: Mapping[str, Mapping[int, bytes]]) -> Logs:
    """Check 8: the logs lead to the quoted values.

    1. The event log, if there is one, is well-formed (`tpm_mtls.event_log.parse_event_log`).
    2. It leads to the values of `FIRMWARE_PCRS`, and of those of `BOOT_LOADER_PCRS` that it has entries for. A log of
       the older format, without digests for the quoted bank, counts as none.
    3. The IMA list, if there is one, is well-formed (`tpm_mtls.ima.parse_ima_log`).
    4. A beginning of it leads to the value of PCR 10.

    Args:
        event_log: the firmware's.
        ima_log: the kernel's; read after the quote, so it may have entries more.
        pcrs: the signed PCR values, by bank and number. The caller must have verified them (check 6).

    Raises:
        EvidenceRefusedError: check 8.
    """
    notes: list[str] = []
    log = _event_log(event_log, pcrs[BANK], notes)
    ima = _ima(ima_log, pcrs, notes)
    return Logs(log, ima, tuple(notes))


def _event_log(data: bytes | None, values: Mapping[int, bytes], notes: list[str]) -> EventLog | None:
    if data is None:
        return None
    with numbered(8):
        log = parse_event_log(data)  # 1
    if BANK not in log.banks:  # 2
        notes.append(f"the event log has no digests for the PCR bank {BANK}: it explains nothing")
        return None
    judged = {*FIRMWARE_PCRS, *(pcr for pcr in BOOT_LOADER_PCRS if pcr in log.pcrs)}
    wrong = mismatches(log, {BANK: {pcr: values[pcr] for pcr in sorted(judged)}})
    if wrong:
        raise _refused(
            f"the event log does not lead to the quoted {named_pcrs([each.pcr for each in wrong])}",
            "is it this boot's log, unchanged? look at: tpm-mtls pcr log",
        )
    return log


def _ima(data: bytes | None, pcrs: Mapping[str, Mapping[int, bytes]], notes: list[str]) -> bool:
    if data is None:
        return False
    with numbered(8):
        log = parse_ima_log(data)  # 3
    entries = entries_behind(log, BANK, pcrs[BANK][IMA_PCR])
    if entries is None:  # 4
        raise _refused(
            f"the IMA list does not lead to the quoted {named_pcrs([IMA_PCR])}",
            "is it this boot's list, unchanged? was PCR 10 extended by something else than the kernel?",
        )
    if boot_aggregate(log, pcrs) is BootAggregate.DIFFERS:
        notes.append("the IMA list began with other values of PCRs 0 to 9: one of them was extended since")
    return bool(entries)


def _refused(message: str, hint: str) -> EvidenceRefusedError:
    return EvidenceRefusedError(message, hint=hint, check=8)
