"""Check 7: the TPM's clock and counters go forward, so that a quote is not one of an earlier TPM state. Pure.

With a key of the owner hierarchy, as ours, a TPM adds to resetCount and restartCount two numbers that nobody else
knows, the same ones for as long as the key lives (TPM 2.0 Library part 1 rev 1.59, 36.7). So the counters say nothing
by themselves; what they rise by between two quotes of one key does. It is computed modulo 2^32, which they wrap round.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import EvidenceRefusedError

if TYPE_CHECKING:
    from tpm_mtls.structures import Attest, PublicArea

UPDATE_INTERVAL: Final = 2**22
"""Milliseconds: at least so often a TPM keeps its clock in NV memory, 69.9 minutes (part 1, 36.3.2).

Where its power fails, the clock goes on from what was kept. Until it has passed all that it may have shown before, it
is to say that it is not safe (36.3.4), and chips do; libtpms, the TPM of most virtual machines, calls itself safe after
four seconds, whatever it showed before."""

_COUNTERS: Final = 2**32
_HINT: Final = (
    "was the TPM a virtual one that was restored from a backup, or does somebody answer with recorded quotes? "
    "if you know why, let the device start anew: tpm-mtls server device approve"
)


@dataclass(frozen=True)
class ClockState:
    """What a TPM's clock was at a quote that passed; the registry keeps the last one of each device.

    Attributes:
        key: which attestation key it was: SHA-256 of its public key (DER SubjectPublicKeyInfo), hex. Not its Name:
            where a certificate vouches for the key, whoever sends the public area could write another policy into it.
        milliseconds: time that the TPM was powered since it was last cleared.
        reset_count: TPM Resets, and a number that only the TPM knows; modulo 2^32.
        restart_count: TPM Restarts and Resumes since the last Reset, and another such number; modulo 2^32.
        safe: whether no larger value of ``milliseconds`` was ever reported before.
        firmware: the firmware's version, and a third such number; modulo 2^64.
    """

    key: str
    milliseconds: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware: int

    @classmethod
    def of(cls, attest: Attest, key: PublicArea) -> ClockState:
        """That of a quote by ``key``."""
        clock = attest.clock
        return cls(
            key=hashlib.sha256(key.spki or b"").hexdigest(),
            milliseconds=clock.milliseconds,
            reset_count=clock.reset_count,
            restart_count=clock.restart_count,
            safe=clock.safe,
            firmware=attest.firmware_version,
        )


def check_clock(before: ClockState | None, now: ClockState) -> None:
    """Check 7: the clock of ``now`` comes after that of ``before``, the last quote of this device.

    1. Without an earlier quote, or after one by another key, there is nothing to compare.
    2. resetCount does not fall.
    3. Without a reset, restartCount does not fall, the clock rises, and a safe clock stays safe.
    4. After a reset, the clock does not fall by `UPDATE_INTERVAL` or more.

    The caller must have verified the quote, and that ``before`` is of the same device.

    Raises:
        EvidenceRefusedError: check 7.
    """
    if before is None or before.key != now.key:  # 1
        return
    resets = _rise(before.reset_count, now.reset_count)
    if resets < 0:  # 2
        raise _refused(f"the TPM's reset counter fell by {-resets}")
    if resets == 0:  # 3
        _check_same_boot(before, now)
        return
    fell = before.milliseconds - now.milliseconds  # 4
    if fell >= UPDATE_INTERVAL:
        raise _refused(f"the TPM's clock fell by {_duration(fell)} at a restart")


def firmware_changed(before: ClockState | None, now: ClockState) -> bool:
    """Whether the TPM has another firmware than at ``before``; of two keys it cannot be told."""
    return before is not None and before.key == now.key and before.firmware != now.firmware


def _check_same_boot(before: ClockState, now: ClockState) -> None:
    restarts = _rise(before.restart_count, now.restart_count)
    if restarts < 0:
        raise _refused(f"the TPM's restart counter fell by {-restarts} without a reset")
    if now.milliseconds <= before.milliseconds:
        fell = before.milliseconds - now.milliseconds
        how = f"fell by {_duration(fell)}" if fell else "stood still"
        raise _refused(f"the TPM's clock {how} without a reset")
    if before.safe and not now.safe:
        raise _refused("the TPM's clock became unsafe without a reset")


def _rise(before: int, now: int) -> int:
    """By how much a counter rose; less than 0 if it fell. A TPM is not reset 2^31 times between two quotes."""
    rise = (now - before) % _COUNTERS
    return rise if rise < _COUNTERS // 2 else rise - _COUNTERS


def _duration(milliseconds: int) -> str:
    seconds = milliseconds / 1000
    return f"{seconds:.3f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"  # noqa: PLR2004 - a minute


def _refused(message: str) -> EvidenceRefusedError:
    return EvidenceRefusedError(message, hint=_HINT, check=7)
