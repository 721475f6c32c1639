"""The TCG event log: what the firmware and the boot loader measured, and the PCR values that follow from it.

    log = parse_event_log(data)
    wrong = mismatches(log, {"sha256": {0: value, 7: value}})   # from a TPM, or a verified quote
    changes = compare(earlier_log, log)                         # in words: str(change)

Everything here is pure and needs no TPM. A log is only a claim: it lies in memory that the operating system can write.
An entry is true if its digest is needed to arrive at a PCR value that a TPM vouches for. So its digests are measured,
and its place among the entries of its PCR; its type, its number, and in general its data are not. Those serve for
words, never for decisions: `Description.measured` says for how much of the words the digest stands.
"""

from tpm_mtls.event_log.compare import Change, ChangeKind, compare
from tpm_mtls.event_log.components import Component
from tpm_mtls.event_log.entries import Entry, EventLog, EventType
from tpm_mtls.event_log.parse import LOG_LIMIT, parse_event_log
from tpm_mtls.event_log.replay import Mismatch, mismatches, replay, values_on_the_way
from tpm_mtls.event_log.words import Description, Measured, describe

__all__ = [
    "LOG_LIMIT",
    "Change",
    "ChangeKind",
    "Component",
    "Description",
    "Entry",
    "EventLog",
    "EventType",
    "Measured",
    "Mismatch",
    "compare",
    "describe",
    "mismatches",
    "parse_event_log",
    "replay",
    "values_on_the_way",
]
