"""How many refusals of strangers go into the audit log: it is kept for ever, and anybody can be refused."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BURST: Final = 1000
"""Rows in one go: a fleet with the wrong maker's root, or an attack that is worth reading about."""

RATE: Final = 1.0
"""Rows for each second from then on: at most 40 MB a day."""


class RefusalBudget:
    """A bucket of rows that fills again with time; what did not fit is counted. Any thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, burst: int = BURST, rate: float = RATE) -> None:
        """Makes a full bucket; ``clock`` gives seconds that only grow."""
        self._clock = clock
        self._burst = burst
        self._rate = rate
        self._rows = float(burst)
        self._since = clock()
        self._left_out = 0
        self._lock = threading.Lock()

    def spend(self) -> int | None:
        """Takes one row: how many refusals were left out since the last one; none if there is no row left."""
        with self._lock:
            now = self._clock()
            self._rows = min(self._burst, self._rows + (now - self._since) * self._rate)
            self._since = now
            if self._rows < 1:
                self._left_out += 1
                return None
            self._rows -= 1
            left_out, self._left_out = self._left_out, 0
            return left_out
