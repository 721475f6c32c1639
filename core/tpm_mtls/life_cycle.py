"""Is this still the TPM that the device was enrolled with, and what follows from the answer. Pure: no TPM, no file.

What tells: the endorsement key stays as long as the chip does; the storage root key is made anew when the TPM is
cleared, and so are all keys under it (TPM 2.0 Library part 1, 14.2; part 3, 24.6, TPM2_Clear); resetCount rises with
each restart and begins anew with a clear (part 1, 36.1).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpm_mtls.identity import IdentityRecord


class Change(enum.Enum):
    """What became of the TPM since; the values are what scripts see."""

    SAME = "same"
    RESTARTED = "restarted"
    SET_BACK = "set back"
    CLEARED = "cleared"
    SWAPPED = "swapped"
    CLEARED_OR_SWAPPED = "cleared or swapped"


@dataclass(frozen=True)
class Observed:
    """What a TPM says now; none where nobody asked, or there is none.

    Attributes:
        srk_name: Name of the storage root key, hex; none if there is none.
        ek_sha256: the endorsement key, as `IdentityRecord.ek_sha256`.
        reset_count: TPMS_CLOCK_INFO.resetCount.
        owner: another device whose identity its NV memory remembers, if nothing there is of this device.
        has_key: whether the record's persistent key is there, under its Name: then the TPM was not cleared, even if
            somebody removed the storage root key.
    """

    srk_name: str | None
    ek_sha256: str | None = None
    reset_count: int | None = None
    owner: str | None = None
    has_key: bool = False


@dataclass(frozen=True)
class LifeCycle:
    """The judgement.

    Attributes:
        change: what happened.
        usable: whether the identity may go on being used. Where not, nothing heals it by itself: the device is never
            enrolled again without somebody deciding so.
        resets: restarts since the count that was compared with; 0 where that is not known, below 0 if set back.
        text: what happened, for messages; empty if nothing did.
        hint: what to do about it; empty if nothing is to be done.
    """

    change: Change
    usable: bool
    resets: int = 0
    text: str = ""
    hint: str = ""


def judge(record: IdentityRecord, observed: Observed, *, reset_count: int | None = None) -> LifeCycle:
    """What happened to the TPM since ``record`` was written, or since it had ``reset_count``.

    1. The endorsement keys differ: it is another TPM, so this is another device.
    2. The storage root key, or the device's persistent key, is still there: it is the same TPM, not cleared. Its
       resetCount tells how often it restarted; if that fell, its state came out of a backup, as a simulated TPM's can.
    3. The endorsement key is the same: the TPM was cleared.
    4. One of the endorsement keys is not known: it was cleared, or is another one.

    A record without a TPM (`IdentityRecord.is_tpm`) belongs to none, and nothing can happen to it.
    """
    if not record.is_tpm:
        return LifeCycle(Change.SAME, usable=True)
    stays = observed.has_key or observed.srk_name == record.srk_name
    asked = observed.ek_sha256 is not None and record.ek_sha256 is not None
    if observed.owner is not None and not stays:
        return _lost(Change.SWAPPED, f"this is the disk of another device, the TPM belongs to {observed.owner}")
    if asked and observed.ek_sha256 != record.ek_sha256:  # 1
        return _lost(Change.SWAPPED, "this is another TPM: it was replaced, or the disk is another device's")
    if stays:  # 2
        return _same(record.reset_count if reset_count is None else reset_count, observed.reset_count)
    if asked:  # 3
        return _lost(Change.CLEARED, "the TPM was cleared")
    return _lost(Change.CLEARED_OR_SWAPPED, "this is another TPM, or it was cleared")  # 4


def _same(before: int, now: int | None) -> LifeCycle:
    resets = 0 if now is None else now - before
    if resets == 0:
        return LifeCycle(Change.SAME, usable=True)
    if resets < 0:
        return LifeCycle(
            Change.SET_BACK,
            usable=True,
            resets=resets,
            text=f"the TPM counts fewer restarts than before ({now}, not {before}): its state came out of a backup",
            hint="a real TPM's cannot: find out who answers in its place; the backend refuses its quotes",
        )
    text = "the TPM was restarted" + (f" {resets} times" if resets > 1 else "")
    return LifeCycle(Change.RESTARTED, usable=True, resets=resets, text=text)


_HINTS = {
    Change.SWAPPED: "put the device's own TPM or disk back; with another TPM it is another device, to be enrolled anew",
    Change.CLEARED: "its key and what was sealed are lost: release the device at the CA, and enroll it anew",
    Change.CLEARED_OR_SWAPPED: "put the device's own TPM or disk back; if it was cleared, enroll the device anew",
}


def _lost(change: Change, text: str) -> LifeCycle:
    return LifeCycle(change, usable=False, text=text, hint=_HINTS[change])
