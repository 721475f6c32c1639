"""What goes to and fro between the registry and those who judge quotes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls_server.registry.rows import BaselineRow, DeviceRow, GroupRow, Pcrs, ReferenceRow


@dataclass(frozen=True)
class TakenNonce:
    """A nonce that was given to a device, and is none any more.

    Attributes:
        nonce: its bytes.
        device: to whom it was given.
        expires: until when it was good.
    """

    nonce: bytes
    device: str
    expires: datetime


@dataclass(frozen=True)
class Background:
    """What a quote is judged by, at one moment.

    Attributes:
        device: whose it is.
        group: the group.
        references: those of the group.
        baseline: the device's; none if it has none.
        clock: JSON, as `Findings` had it at the last genuine quote; none if there was none.
        keys: Names (hex) of the attestation keys that an operator recorded for the device.
    """

    device: DeviceRow
    group: GroupRow
    references: tuple[ReferenceRow, ...]
    baseline: BaselineRow | None
    clock: str | None
    keys: frozenset[str]


@dataclass(frozen=True)
class Shown:
    """The parts of a quote that are kept.

    Attributes:
        attestation_key: the Name of its key, hex; empty if that is unreadable.
        attest: the TPMS_ATTEST.
        signature: the TPMT_SIGNATURE.
        pcrs: the values sent along.
        endorsement_key: the TPMT_PUBLIC of the endorsement key, if it was sent along.
    """

    attestation_key: str
    attest: bytes
    signature: bytes
    pcrs: Pcrs
    endorsement_key: bytes | None = None


@dataclass(frozen=True)
class Seen:
    """What a genuine quote showed.

    Attributes:
        pcrs: the signed PCR values.
        event_log: the event log that leads to them; none if there is none.
    """

    pcrs: Pcrs
    event_log: bytes | None


@dataclass(frozen=True)
class Findings:
    """What became of a quote.

    Attributes:
        trusted: whether it passed.
        check: the number of the check that it failed; none if it failed none.
        pending: whether only an operator's approval lacks.
        reason: what was found.
        differences: how what was booted differs from what was expected.
        clock: JSON of the TPM's clock, to be held against the next quote; none if the quote is not genuine.
        seen: what it showed, which an operator may approve; none if nothing that counts.
        learn: whether that becomes the device's baseline.
    """

    trusted: bool
    check: int | None
    pending: bool
    reason: str
    differences: tuple[str, ...] = ()
    clock: str | None = None
    seen: Seen | None = None
    learn: bool = False
