"""Whether a device's state lets it in, endpoint by endpoint. Pure functions, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tpm_mtls.attestation.messages import DeviceState
from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from tpm_mtls_server.registry import DeviceRow

NONCE_PATH: Final = "/attestation/nonce"
ATTESTATION_PATH: Final = "/attestation"
HEALTH_PATH: Final = "/health"

ALWAYS_OPEN: Final = frozenset({NONCE_PATH, ATTESTATION_PATH, HEALTH_PATH})
"""What every device may use whose certificate is good: the way out of every other state leads through these."""

_ASK: Final = "let the device send a quote: tpm-mtls agent check"
_OPERATOR: Final = "tpm-mtls server device"


@dataclass(frozen=True)
class Gate:
    """What attestation is required for.

    Attributes:
        paths: the paths that only attested devices may use.
        lifetime: how long a quote counts that passed; one may have been given a shorter life when it came.
    """

    paths: frozenset[str]
    lifetime: timedelta

    @classmethod
    def of(cls, paths: Iterable[str], *, known: Iterable[str], lifetime: timedelta) -> Gate:
        """The gate before ``paths``.

        Raises:
            UsageError: one of them is none of the ``known``, or must stay open.
        """
        chosen = frozenset(paths)
        possible = frozenset(known) - ALWAYS_OPEN
        for path in sorted(chosen - possible):
            why = "is the way to become attested" if path in ALWAYS_OPEN else "is no path for devices"
            raise UsageError(
                f"attestation cannot be required for {path[:80]}: it {why}",
                hint=f"take one of {', '.join(sorted(possible))}",
            )
        return cls(chosen, lifetime)


class Closed(NamedTuple):
    """Why a device may not use a path, and what to do about it."""

    reason: str
    hint: str


def closed(device: DeviceRow, path: str, *, gate: Gate, now: datetime) -> Closed | None:
    """Why the device may not use ``path`` at ``now``; none if it may."""
    if path in ALWAYS_OPEN:
        return None
    state = device.state(now)
    if state is DeviceState.QUARANTINED:
        return Closed("the device is quarantined", f"an operator lets it in: {_OPERATOR} release {device.name}")
    if path not in gate.paths:
        return None
    if state is DeviceState.ATTESTED and (device.trusted_at is None or now >= device.trusted_at + gate.lifetime):
        state = DeviceState.OUTDATED
    return _reason(device, state)


def _reason(device: DeviceRow, state: DeviceState) -> Closed | None:
    match state:
        case DeviceState.UNATTESTED:
            return Closed("the device has not shown what it booted", _ASK)
        case DeviceState.OUTDATED:
            return Closed("what the device booted was shown too long ago", _ASK)
        case DeviceState.PENDING:
            return Closed(
                "what the device booted waits for an operator's approval", f"{_OPERATOR} approve {device.name}"
            )
        case DeviceState.FAILING:
            check = device.verdict.check if device.verdict else None
            return Closed(
                f"the device's last quote failed check {check}", f"an operator sees why: {_OPERATOR} show {device.name}"
            )
        case _:
            return None
