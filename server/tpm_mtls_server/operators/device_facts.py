"""What an operator is told about a device, in the command line's JSON as in the HTTP API's.

Pure but for `read_dossier`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls.attestation.health import decode_health
from tpm_mtls.attestation.messages import CHECKS
from tpm_mtls.errors import EvidenceError

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls.attestation.health import HealthReport
    from tpm_mtls_server.registry import (
        AttestationKeyRow,
        AuditRow,
        BaselineRow,
        DeviceRow,
        GroupRow,
        ObservationRow,
        QuoteRow,
        Registry,
    )

HISTORY: Final = 20
"""Rows of the audit log that are told."""


@dataclass(frozen=True)
class Dossier:
    """All that the registry knows about a device.

    Attributes:
        device: the device.
        group: its group.
        quotes: those that are kept, the newest first.
        baseline: what it is held against; none if there is nothing.
        seen: what an approval would accept; none if there is nothing.
        keys: the attestation keys that operators enrolled it with.
        history: what the audit log says about it, the newest first.
    """

    device: DeviceRow
    group: GroupRow
    quotes: tuple[QuoteRow, ...]
    baseline: BaselineRow | None
    seen: ObservationRow | None
    keys: tuple[AttestationKeyRow, ...]
    history: tuple[AuditRow, ...]


def read_dossier(registry: Registry, name: str) -> Dossier | None:
    """What there is about the device ``name``; none if it never came.

    Raises:
        StorageError: the registry cannot be read.
    """
    device = registry.device(name)
    if device is None:
        return None
    return Dossier(
        device=device,
        group=registry.groups.get(device.group),
        quotes=tuple(registry.quotes(name)),
        baseline=registry.baseline(name),
        seen=registry.observation(name),
        keys=tuple(registry.keys(name)),
        history=tuple(registry.audit(name, limit=HISTORY)),
    )


def device_facts(device: DeviceRow, *, now: datetime) -> dict[str, Any]:
    """A device as one of a list; times are ISO 8601 in UTC."""
    verdict = device.verdict
    return {
        "name": device.name,
        "state": device.state(now),
        "group": device.group,
        "first_seen": instant(device.first_seen),
        "last_seen": instant(last_contact(device)),
        "certificate": {
            "serial": device.serial,
            "not_after": instant(device.not_after),
            "is_tpm": device.tpm is not None,
        },
        "tpm": device.tpm,
        "refused_tpm": None if device.refused_at is None else _refused(device),
        "quarantine": None
        if device.quarantined_at is None
        else {"at": instant(device.quarantined_at), "reason": device.quarantine_reason},
        "verdict": None
        if verdict is None
        else {
            "at": instant(verdict.at),
            "trusted": verdict.trusted,
            "check": verdict.check,
            "about": CHECKS.get(verdict.check or 0),
            "pending": verdict.pending,
            "reason": verdict.reason,
        },
        "trusted_until": None if device.trusted_until is None else instant(device.trusted_until),
        "wanted": device.wanted,
        "health": None if device.health_at is None else _health_facts(device.health_at, health_report(device)),
    }


def dossier_facts(dossier: Dossier, *, now: datetime) -> dict[str, Any]:
    """All about a device: `device_facts`, and what it showed and what operators did."""
    baseline, seen = dossier.baseline, dossier.seen
    return device_facts(dossier.device, now=now) | {
        "certificate_pem": _pem(dossier.device.certificate),
        "endorsement_key": _tpm2b(dossier.device.endorsement_key),
        "health_report": health_report(dossier.device),
        "policy": {"mode": dossier.group.mode, "pcrs": list(dossier.group.pcrs)},
        "baseline": None
        if baseline is None
        else _boot_facts(baseline)
        | {"accepted_at": instant(baseline.accepted_at), "accepted_by": baseline.accepted_by or None},
        "seen": None if seen is None else _boot_facts(seen),
        "quotes": [_quote_facts(each) for each in dossier.quotes],
        "keys": [
            {"name": each.name, "added_at": instant(each.added_at), "added_by": each.added_by} for each in dossier.keys
        ],
        "history": [
            {"at": instant(each.at), "event": each.event, "by": each.actor or None, "detail": each.detail}
            for each in dossier.history
        ],
    }


def health_report(device: DeviceRow) -> HealthReport | None:
    """The device's last health report; none if it never sent one, or an older version of this program took it.

    Nothing of it is proved.
    """
    if device.health is None:
        return None
    try:
        return decode_health(device.health.encode())
    except EvidenceError:
        return None


def last_contact(device: DeviceRow) -> datetime:
    """When the device last came: exact for health reports and judged quotes, to a minute for all else.

    `DeviceRow.last_seen` alone may be older than the quote that a person reads beside it.
    """
    reported = (device.health_at, device.verdict.at if device.verdict is not None else None)
    return max([device.last_seen, *(each for each in reported if each is not None)])


def instant(time: datetime) -> str:
    """``time`` as ISO 8601 in UTC, to the second."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _pem(certificate: bytes) -> str:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()


def _tpm2b(public: bytes | None) -> str | None:
    """A TPM2B_PUBLIC in base64, as tpm2-tools and others take it: the size, then the TPMT_PUBLIC."""
    return None if public is None else base64.b64encode(len(public).to_bytes(2, "big") + public).decode()


def _refused(device: DeviceRow) -> dict[str, Any]:
    at = None if device.refused_at is None else instant(device.refused_at)
    return {"at": at, "tpm": device.refused_tpm or None}


def _health_facts(at: datetime, report: HealthReport | None) -> dict[str, Any]:
    return {
        "at": instant(at),
        "maintenance": None if report is None else report.maintenance,
        "failures": [each.kind for each in report.failures] if report else [],
        "warnings": [each.kind for each in report.warnings] if report else [],
    }


def _boot_facts(boot: ObservationRow) -> dict[str, Any]:
    return {
        "at": instant(boot.at),
        "boot": boot.digest,
        "pcrs": boot.pcrs,
        "event_log": boot.event_log is not None,
    }


def _quote_facts(quote: QuoteRow) -> dict[str, Any]:
    return {
        "id": quote.id,
        "at": instant(quote.at),
        "trusted": quote.trusted,
        "check": quote.check,
        "state": quote.state,
        "reason": quote.reason,
        "differences": list(quote.differences),
        "attestation_key": quote.attestation_key,
        "pcrs": quote.pcrs,
    }
