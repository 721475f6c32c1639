"""Spans of time as people write them: ``30s``, ``5m``, ``1h``, ``24h``, ``7d``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    import click

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LIMIT: Final = 365 * 86_400  # seconds


def parse_duration(text: str) -> float:
    """The seconds in ``text``: a whole number above 0 and a unit, at most 365 days.

    Raises:
        UsageError: it is something else.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= _LIMIT:
        raise UsageError(f"not a span of time: {text[:20]!r}", hint="for example 30s, 5m, 1h or 7d; at most 365d")
    return float(seconds)


def duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """The callback of a command line's option that takes such a span, with a default: passes on the seconds."""
    return parse_duration(text)
