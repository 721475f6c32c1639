"""Names are credentials, so guessing them must be slow: how many wrong ones an account may still ask for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

ACCOUNTS: Final = 4096
"""Accounts remembered one by one, some 100 bytes each; when so many have guessed lately, new ones share one budget."""


class WrongNames:
    """For each account a bucket of wrong names that fills again with time. Times are seconds that only grow."""

    def __init__(self, *, free: int, interval: float, accounts: int = ACCOUNTS) -> None:
        self._free = free
        self._interval = interval
        self._limit = accounts
        self._full_at: dict[Hashable, float] = {}  # when each bucket is full again; full ones need no memory
        self._others_full_at = -math.inf

    def wait(self, account: Hashable, now: float) -> float:
        """Seconds until ``account`` may ask for a name again; 0 for now."""
        full_at = self._full_at.get(account, self._others_full_at if self._crowded(now) else -math.inf)
        # one wrong name is left as long as the bucket lacks at most all but one
        return max(0.0, full_at - now - (self._free - 1) * self._interval)

    def add(self, account: Hashable, now: float) -> None:
        """Says that ``account`` asked for a name that nobody has."""
        if account not in self._full_at and self._crowded(now):
            self._others_full_at = max(self._others_full_at, now) + self._interval
        else:
            self._full_at[account] = max(self._full_at.get(account, now), now) + self._interval

    def __len__(self) -> int:
        return len(self._full_at)

    def _crowded(self, now: float) -> bool:
        if len(self._full_at) < self._limit:
            return False
        self._full_at = {account: full_at for account, full_at in self._full_at.items() if full_at > now}
        return len(self._full_at) >= self._limit
