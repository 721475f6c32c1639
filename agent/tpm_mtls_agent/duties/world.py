"""What is outside of the duties: clocks, and chance."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class World:
    """See the module's docstring.

    Attributes:
        monotonic: seconds that never go back.
        now: the present time.
        random: a number in [0, 1).
    """

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    random: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)

    def seconds(self) -> int:
        """The present time in seconds since 1970."""
        return max(0, int(self.now().timestamp()))
