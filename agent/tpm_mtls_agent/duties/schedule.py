"""When each duty is to be done next. Pure: seconds of a clock that never goes back, and random numbers, come in."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_DOUBLINGS: Final = 16
_SPREAD: Final = 0.5  # a delay is up to that part longer, so that devices that failed together do not come together


class Duty(enum.Enum):
    """What is to be done, in this order if more than one is due."""

    CHECK = "check"
    """See how the TPM is."""

    REPORT = "report"
    """Tell the backend."""

    ATTEST = "attest"
    """Show the backend what was booted."""

    RENEW = "renew"
    """Get another certificate."""


_BACKEND: Final = frozenset({Duty.REPORT, Duty.ATTEST})
"""Both ask the backend: where it does not answer to one, it is not asked for the other either."""


@dataclass(frozen=True)
class Pace:
    """How often; in seconds.

    Attributes:
        interval: between two health checks, and between two quotes.
        jitter: the part of it by which each one is shorter or longer.
        longest: the longest delay after failures.
    """

    interval: float = 3600.0
    jitter: float = 0.1
    longest: float = 3600.0

    @property
    def shortest(self) -> float:
        """The delay after the first failure: a minute, or the interval if that is shorter."""
        return min(60.0, self.interval)

    def next_interval(self, random: float) -> float:
        """The seconds to the next time, by a ``random`` number in [0, 1)."""
        return self.interval * (1 + self.jitter * (2 * random - 1))

    def delay(self, failures: int, random: float) -> float:
        """The seconds to wait after so many ``failures`` in a row: 1, 2, 4, … minutes up to an hour, never less than
        `shortest` or more than `longest`.
        """  # noqa: D205 - one sentence
        growing = self.shortest * 2.0 ** min(failures - 1, _DOUBLINGS)
        return max(self.shortest, min(growing, self.longest / (1 + _SPREAD)) * (1 + _SPREAD * random))


class Schedule:
    """When what is due. Everything is due at once, at the start; but reports follow a check."""

    def __init__(self, pace: Pace, duties: Iterable[Duty], *, now: float, random: Callable[[], float]) -> None:
        self._pace = pace
        self._random = random
        self._at = dict.fromkeys(sorted(duties, key=list(Duty).index), now)
        self._failures = dict.fromkeys(self._at, 0)
        self._not_before = dict.fromkeys(self._at, now)
        if Duty.REPORT in self._at:
            self._at[Duty.REPORT] = math.inf

    def due(self, now: float) -> Duty | None:
        """The first that is due; none if nothing is."""
        return next((duty for duty, at in self._at.items() if at <= now), None)

    def wait(self, now: float) -> float | None:
        """Seconds until something is due; none if nothing ever will be."""
        at = min(self._at.values(), default=math.inf)
        return None if at == math.inf else max(0.0, at - now)

    def has(self, duty: Duty) -> bool:
        """Whether ``duty`` is one of those that are done at all."""
        return duty in self._at

    def plan(self, duty: Duty, at: float) -> None:
        """Does ``duty`` at ``at``, or when its last failure was long enough ago."""
        if duty in self._at:
            self._at[duty] = max(at, self._not_before[duty])

    def all_now(self, now: float) -> None:
        """Somebody wants it now, whatever failed before. A report follows the check."""
        for duty in self._at:
            self._failures[duty] = 0
            self._not_before[duty] = now
            if duty is not Duty.REPORT:
                self._at[duty] = now

    def succeeded(self, duty: Duty, now: float) -> None:
        """``duty`` is done; it, and whatever asks the same server, has not failed any more."""
        for each in self._companions(duty):
            self._failures[each] = 0
            self._not_before[each] = now
        follows_another = duty is Duty.REPORT
        self._at[duty] = math.inf if follows_another else now + self._pace.next_interval(self._random())
        if duty is Duty.RENEW:  # however due the new certificate may seem to a wrong clock
            self._not_before[duty] = self._at[duty]
        if duty is Duty.CHECK:
            self.plan(Duty.REPORT, now)

    def failed(self, duty: Duty, now: float, *, alone: bool = False) -> float:
        """``duty`` failed; returns the seconds until it is tried again.

        Args:
            duty: what failed.
            now: the present time.
            alone: whether that says nothing about other duties that ask the same server.
        """
        failures = self._failures[duty] + 1
        delay = self._pace.delay(failures, self._random())
        for each in [duty] if alone else self._companions(duty):
            self._failures[each] = failures
            self._not_before[each] = now + delay
            self._at[each] = max(self._at[each], now + delay)
        self._at[duty] = now + delay
        return delay

    def _companions(self, duty: Duty) -> list[Duty]:
        return [each for each in self._at if each is duty or {each, duty} == _BACKEND]
