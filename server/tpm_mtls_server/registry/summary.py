"""The whole registry in a few numbers, for monitoring."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import msgspec
import sqlalchemy
from sqlalchemy import case, func

from tpm_mtls.attestation.health import FailureKind
from tpm_mtls.attestation.messages import DeviceState
from tpm_mtls_server.registry import schema
from tpm_mtls_server.registry.reading import seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.engine import Connection


@dataclass(frozen=True)
class Summary:
    """How many devices there are.

    Attributes:
        states: by state; each state is there.
        reporting: those that ever reported their health.
        failures: of them, those whose last report has a failure, by the failure's class; each class is there.
    """

    states: Mapping[DeviceState, int]
    reporting: int
    failures: Mapping[str, int]


class _Failure(msgspec.Struct):
    kind: str


class _Report(msgspec.Struct):
    """As much of a `tpm_mtls.attestation.health.HealthReport` as is counted; a report was verified when it came."""

    failures: list[_Failure] = []


def summarize(connection: Connection, now: datetime) -> Summary:
    """What the registry holds at ``now``."""
    devices = schema.devices.c
    state = case(  # as `DeviceRow.state`, in SQL: a fleet is counted at each scrape
        (devices.quarantined_at.is_not(None), DeviceState.QUARANTINED.value),
        (devices.judged_at.is_(None), DeviceState.UNATTESTED.value),
        (sqlalchemy.not_(devices.trusted) & devices.pending, DeviceState.PENDING.value),
        (sqlalchemy.not_(devices.trusted), DeviceState.FAILING.value),
        (func.coalesce(devices.trusted_until, 0) <= seconds(now), DeviceState.OUTDATED.value),
        else_=DeviceState.ATTESTED.value,
    )
    counted = connection.execute(sqlalchemy.select(state, func.count()).group_by(state)).all()
    states = dict.fromkeys(DeviceState, 0) | {DeviceState(name): count for name, count in counted}
    reports = connection.execute(sqlalchemy.select(devices.health).where(devices.health.is_not(None)))
    reporting, failures = 0, Counter[str](dict.fromkeys(get_args(FailureKind), 0))
    for (report,) in reports:
        reporting += 1
        failures.update({failure.kind for failure in _decoder.decode(report).failures})
    return Summary(states, reporting, failures)


_decoder = msgspec.json.Decoder(_Report)
