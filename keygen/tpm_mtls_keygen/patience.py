"""Trying again, for as long as somebody said: exponential back-off with jitter."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls.errors import TpmMtlsError

T = TypeVar("T")

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0
_LONGEST_ORDERED = 24 * 3600.0
"""Seconds. A fleet that loses its CA asks it at most once a minute per device, spread out by the jitter."""


@dataclass(frozen=True)
class Later:
    """An attempt that failed now but may succeed later.

    Attributes:
        error: what to raise when there is no later.
        after: seconds to wait at least, if the other side said so.
    """

    error: TpmMtlsError
    after: float | None = None


@dataclass(frozen=True)
class Patience:
    """How long to go on trying, and by which clock.

    Attributes:
        seconds: in all; 0 makes one attempt.
        monotonic: seconds that never go back.
        sleep: waits that many seconds.
        uniform: a random number in [0, 1).
    """

    seconds: float = 0.0
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[], float] = random.SystemRandom().random

    def start(self, *, waiting: Callable[[TpmMtlsError, float], None]) -> Attempts:
        """Begins to count the seconds; ``waiting`` is told the reason and the delay (seconds) before each wait."""
        return Attempts(self, deadline=self.monotonic() + self.seconds, waiting=waiting)


class Attempts:
    """Attempts that share one deadline."""

    def __init__(self, patience: Patience, *, deadline: float, waiting: Callable[[TpmMtlsError, float], None]) -> None:
        self._patience = patience
        self._deadline = deadline
        self._waiting = waiting

    def until_done(self, attempt: Callable[[], T | Later]) -> T:
        """The result of ``attempt``, which is called until it returns something else than `Later`.

        Raises:
            TpmMtlsError: what ``attempt`` raises, at once; and its last `Later`'s error when the time is over, or the
                other side wants to be left alone for longer than that.
        """
        failures = 0
        while isinstance(outcome := attempt(), Later):
            failures += 1
            left = self._deadline - self._patience.monotonic()
            if left <= 0 or (outcome.after or 0.0) > left:
                raise outcome.error
            delay = min(next_delay(failures, outcome.after, self._patience.uniform()), left)
            self._waiting(outcome.error, delay)
            self._patience.sleep(delay)
        return outcome


def next_delay(failures: int, after: float | None, jitter: float) -> float:
    """Seconds before the next attempt, after ``failures`` in a row.

    Between half and all of 1, 2, 4, … up to 60 seconds, by ``jitter`` (0 to 1): so devices that failed together do not
    come back together. On top of ``after`` (seconds), if the other side named it.
    """
    ceiling = min(_FIRST_DELAY * 2.0 ** min(failures - 1, 10), _LONGEST_DELAY)
    return (after or 0.0) + ceiling * (1 + jitter) / 2


def retry_after(header: str | None, *, now: datetime) -> float | None:
    """Seconds that a Retry-After ``header`` asks to wait (RFC 9110, 10.2.3); none when it says nothing readable.

    At most a day: whoever says more has a wrong clock.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:10]), _LONGEST_ORDERED)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_ORDERED)
