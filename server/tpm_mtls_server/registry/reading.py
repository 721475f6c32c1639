"""Rows of the tables as what the registry gives to its readers, and times as the tables keep them."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tpm_mtls_server.registry.rows import (
    AttestationKeyRow,
    AuditRow,
    BaselineRow,
    DeviceRow,
    GroupRow,
    Mode,
    ObservationRow,
    Pcrs,
    QuoteRow,
    ReferenceKind,
    ReferenceRow,
    StandingVerdict,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Row


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
        certificate=row.certificate,
        tpm=row.tpm,
        endorsement_key=row.endorsement_key,
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
