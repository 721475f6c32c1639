"""Where event logs are, and reading them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tpm_mtls.errors import EvidenceError, PemError, StorageError
from tpm_mtls.event_log import LOG_LIMIT, parse_event_log
from tpm_mtls.files import read_capped

if TYPE_CHECKING:
    from tpm_mtls.event_log import EventLog

KERNEL_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
"""Where Linux shows the event log of the present boot; by default only root may read it."""


class PresentLog(NamedTuple):
    """The event log of the present boot.

    Attributes:
        log: the log; none if there is none to read.
        why_not: then the reason, for people; else empty.
    """

    log: EventLog | None
    why_not: str


def read_log(path: Path) -> EventLog:
    """The event log in the file ``path``.

    Raises:
        EvidenceError: it is malformed.
        PemError, StorageError: it is oversized, or cannot be read.
    """
    data = read_capped(path, limit=LOG_LIMIT)
    try:
        return parse_event_log(data)
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}", hint=error.hint) from error


def present_log(named: Path | None, *, kernel: Path = KERNEL_LOG) -> PresentLog:
    """The event log in the file ``named``, which must be there; without a name the kernel's, which need not be.

    Raises:
        EvidenceError, PemError, StorageError: what is ``named`` is malformed, oversized, or cannot be read.
    """
    if named is not None:
        return PresentLog(read_log(named), "")
    try:
        return PresentLog(read_log(kernel), "")
    except (EvidenceError, PemError, StorageError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            why = f"there is no event log at {kernel}: the firmware keeps none, or securityfs is not mounted"
            return PresentLog(None, why)
        return PresentLog(None, f"{error} ({error.hint})")
