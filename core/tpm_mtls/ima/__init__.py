"""IMA's measurement list: the files that Linux measured while it ran, and the PCR value that follows from it.

    log = parse_ima_log(data)
    entries = entries_behind(log, "sha256", value)   # value of PCR 10, from a verified quote; none if there are none
    boot_aggregate(log, pcrs)                        # whether the list began in the boot that was quoted

Everything here is pure and needs no TPM. A list is only a claim. An entry is true if its data are needed to arrive at a
PCR value that a TPM vouches for. A list that was read after the quote goes on behind it; nobody vouches for that rest.
"""

from tpm_mtls.ima.boot_aggregate import BootAggregate, boot_aggregate
from tpm_mtls.ima.entries import IMA_PCR, ImaEntry, ImaLog
from tpm_mtls.ima.parse import IMA_LOG_LIMIT, parse_ima_log
from tpm_mtls.ima.replay import entries_behind, replay_ima

__all__ = [
    "IMA_LOG_LIMIT",
    "IMA_PCR",
    "BootAggregate",
    "ImaEntry",
    "ImaLog",
    "boot_aggregate",
    "entries_behind",
    "parse_ima_log",
    "replay_ima",
]
