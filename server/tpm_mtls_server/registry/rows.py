"""What the registry gives to its readers."""

from __future__ import annotations

import enum
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tpm_mtls.attestation.messages import DeviceState
from tpm_mtls.policy.document import pcr_digest

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

SIGNED_PCRS: Final = range(16)
"""The PCRs that every quote signs."""

Pcrs = dict[str, dict[int, str]]
"""PCR values, hexadecimal, by bank and number."""


class Mode(enum.StrEnum):
    """What the devices of a group are held against."""

    LEARN = "learn"
    """Each against the first quote of its own that passed."""

    APPROVE = "approve"
    """Each against what an operator approved."""

    VALUES = "values"
    """All against values that an operator gave."""

    SIGNED = "signed"
    """All against signed policies."""


class ReferenceKind(enum.StrEnum):
    """What a reference's content is."""

    VALUES = "values"
    """JSON of a `tpm_mtls.policy.states.MachineState`: one state that is accepted."""

    SIGNED = "signed"
    """JSON of a `tpm_mtls.policy.document.SignedPolicy`."""

    SIGNER = "signer"
    """The public key (PEM) of an operator who signs policies."""


@dataclass(frozen=True)
class StandingVerdict:
    """What the last quote showed.

    Attributes:
        at: when it came.
        trusted: whether it passed.
        check: the number of the check that it failed; none if it failed none.
        pending: whether only an operator's approval lacks.
        reason: what was found.
    """

    at: datetime
    trusted: bool
    check: int | None
    pending: bool
    reason: str


@dataclass(frozen=True)
class DeviceRow:
    """A device.

    Attributes:
        name: its name.
        group: its group.
        first_seen: when it first came.
        last_seen: when it last came, to a minute.
        serial: of the certificate that it showed last, hex.
        not_after: when that certificate expires.
        tpm: SHA-256 of its endorsement key's public key, hex; none for a software key.
        refused_tpm: the TPM that a refused certificate named instead, hex; empty if that named none; none if no
            certificate of its name was refused since.
        refused_at: when that was.
        quarantined_at: when an operator shut it out; none if nobody did.
        quarantine_reason: and why.
        verdict: what its last quote showed; none if it never sent one.
        trusted_at: when a quote of it last passed.
        trusted_until: how long that counts.
        wanted: whether the server wants a quote at the next occasion.
        health_at: when it last reported its health.
        health: that report, a JSON object.
        revision: grows with every change that matters to a quote's verdict.
    """

    name: str
    group: str
    first_seen: datetime
    last_seen: datetime
    serial: str
    not_after: datetime
    tpm: str | None
    refused_tpm: str | None
    refused_at: datetime | None
    quarantined_at: datetime | None
    quarantine_reason: str | None
    verdict: StandingVerdict | None
    trusted_at: datetime | None
    trusted_until: datetime | None
    wanted: bool
    health_at: datetime | None
    health: str | None
    revision: int

    def state(self, now: datetime) -> DeviceState:
        """What the server makes of it at ``now``."""
        if self.quarantined_at is not None:
            return DeviceState.QUARANTINED
        if self.verdict is None:
            return DeviceState.UNATTESTED
        if not self.verdict.trusted:
            return DeviceState.PENDING if self.verdict.pending else DeviceState.FAILING
        if self.trusted_until is None or now >= self.trusted_until:
            return DeviceState.OUTDATED
        return DeviceState.ATTESTED


@dataclass(frozen=True)
class QuoteRow:
    """A quote that came; the newest 20 of a device are kept.

    Attributes:
        id: grows.
        at: when it came.
        trusted: whether it passed.
        check: the number of the check that it failed; none if it failed none.
        state: what the server made of the device then.
        reason: what was found.
        differences: how what was booted differs from what was expected.
        attestation_key: Name of the key that it says signed it, hex; empty if that was unreadable.
        attest: the TPMS_ATTEST.
        signature: the TPMT_SIGNATURE.
        pcrs: the values sent along.
    """

    id: int
    at: datetime
    trusted: bool
    check: int | None
    state: str
    reason: str
    differences: tuple[str, ...]
    attestation_key: str
    attest: bytes
    signature: bytes
    pcrs: Pcrs


@dataclass(frozen=True)
class ObservationRow:
    """What the last quote showed that only the policy could refuse.

    Attributes:
        at: when it came.
        pcrs: the PCR values.
        event_log: the event log; none if there was none.
    """

    at: datetime
    pcrs: Pcrs
    event_log: bytes | None

    @property
    def digest(self) -> str:
        """SHA-256 over the signed PCRs, hex: the pcrDigest of the quote. By it an operator says which boot is meant."""
        values = self.pcrs.get("sha256", {})
        return pcr_digest([bytes.fromhex(values[pcr]) for pcr in sorted(values) if pcr in SIGNED_PCRS]).hex()


@dataclass(frozen=True)
class BaselineRow(ObservationRow):
    """What a device is held against.

    Attributes:
        accepted_at: when it was learned or approved.
        accepted_by: by which operator; empty if it was learned.
    """

    accepted_at: datetime
    accepted_by: str


@dataclass(frozen=True)
class GroupRow:
    """A group of devices.

    Attributes:
        name: its name.
        mode: what its devices are held against.
        pcrs: the PCRs that count; empty for all that are signed.
        revision: grows with every change.
    """

    name: str
    mode: Mode
    pcrs: tuple[int, ...]
    revision: int


@dataclass(frozen=True)
class ReferenceRow:
    """A reference that a group's devices are held against.

    Attributes:
        id: its number.
        group: whose.
        kind: what it is.
        digest: SHA-256 of the content, hex.
        content: text; see `ReferenceKind`.
        added_at: when.
        added_by: by which operator.
    """

    id: int
    group: str
    kind: ReferenceKind
    digest: str
    content: str
    added_at: datetime
    added_by: str


@dataclass(frozen=True)
class AttestationKeyRow:
    """An operator's word that an attestation key is a device's.

    Attributes:
        name: the key's Name, hex.
        device: whose it is.
        added_at: when.
        added_by: by which operator.
    """

    name: str
    device: str
    added_at: datetime
    added_by: str


@dataclass(frozen=True)
class AuditRow:
    """One row of the audit log.

    Attributes:
        id: grows.
        at: when.
        event: what happened, such as ``quarantined``.
        subject: to which device; or ``group:NAME``.
        actor: by which operator; empty for the server itself.
        detail: the facts.
    """

    id: int
    at: datetime
    event: str
    subject: str
    actor: str
    detail: dict[str, Any]


def seconds(time: datetime) -> int:
    """``time`` as whole seconds since 1970 UTC: how the registry keeps it."""
    return int(time.timestamp())


def moment(value: int) -> datetime:
    """The inverse of `seconds`."""
    return datetime.fromtimestamp(value, UTC)


def _maybe(value: int | None) -> datetime | None:
    return None if value is None else moment(value)


def device_row(row: Row[Any]) -> DeviceRow:
    """The device in a row of its table."""
    verdict = None
    if row.judged_at is not None:
        verdict = StandingVerdict(moment(row.judged_at), row.trusted, row.check, row.pending, row.reason)
    return DeviceRow(
        name=row.name,
        group=row.group_name,
        first_seen=moment(row.first_seen),
        last_seen=moment(row.last_seen),
        serial=row.serial,
        not_after=moment(row.not_after),
        tpm=row.tpm,
        refused_tpm=row.refused_tpm,
        refused_at=_maybe(row.refused_at),
        quarantined_at=_maybe(row.quarantined_at),
        quarantine_reason=row.quarantine_reason,
        verdict=verdict,
        trusted_at=_maybe(row.trusted_at),
        trusted_until=_maybe(row.trusted_until),
        wanted=row.wanted,
        health_at=_maybe(row.health_at),
        health=row.health,
        revision=row.revision,
    )


def quote_row(row: Row[Any]) -> QuoteRow:
    """The quote in a row of its table."""
    return QuoteRow(
        id=row.id,
        at=moment(row.at),
        trusted=row.trusted,
        check=row.check,
        state=row.state,
        reason=row.reason,
        differences=msgspec.json.decode(row.differences, type=tuple[str, ...]),
        attestation_key=row.attestation_key,
        attest=row.attest,
        signature=row.signature,
        pcrs=msgspec.json.decode(row.pcrs, type=Pcrs),
    )


def observation_row(row: Row[Any]) -> ObservationRow:
    """The observation in a row of its table."""
    log = None if row.event_log is None else zlib.decompress(row.event_log)
    return ObservationRow(moment(row.at), msgspec.json.decode(row.pcrs, type=Pcrs), log)


def baseline_row(row: Row[Any]) -> BaselineRow:
    """The baseline in a row of its table."""
    seen = observation_row(row)
    return BaselineRow(seen.at, seen.pcrs, seen.event_log, moment(row.accepted_at), row.accepted_by)


def group_row(row: Row[Any]) -> GroupRow:
    """The group in a row of its table."""
    return GroupRow(row.name, Mode(row.mode), msgspec.json.decode(row.pcrs, type=tuple[int, ...]), row.revision)


def reference_row(row: Row[Any]) -> ReferenceRow:
    """The reference in a row of its table."""
    return ReferenceRow(
        row.id, row.group_name, ReferenceKind(row.kind), row.digest, row.content, moment(row.added_at), row.added_by
    )


def key_row(row: Row[Any]) -> AttestationKeyRow:
    """The enrollment record in a row of its table."""
    return AttestationKeyRow(row.name, row.device, moment(row.added_at), row.added_by)


def audit_row(row: Row[Any]) -> AuditRow:
    """The entry in a row of the audit log."""
    detail = msgspec.json.decode(row.detail, type=dict[str, Any])
    return AuditRow(row.id, moment(row.at), row.event, row.subject, row.actor, detail)
