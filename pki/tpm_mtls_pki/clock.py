"""Time comes in from outside: a callable that tests replace."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]
"""Returns the present as an aware datetime in UTC."""


def utc_now() -> datetime:
    """The machine's clock, in UTC, without the fraction of a second that X.509 does not have."""
    return datetime.now(UTC).replace(microsecond=0)


def seconds(time: datetime) -> int:
    """``time`` as whole seconds since 1970-01-01 UTC: how the store keeps it."""
    return int(time.timestamp())


def from_seconds(value: int) -> datetime:
    """The inverse of `seconds`."""
    return datetime.fromtimestamp(value, UTC)
