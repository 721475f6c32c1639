"""A clock that a test turns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class Clock:
    """Gives the present time, ``offset`` later."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset
