"""Logs: one JSON object per line on stderr, for this package only; never a body, a query or a header."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

LOGGER = logging.getLogger("tpm_mtls_server")

PATH_LIMIT = 200
"""Characters of a request's path that are logged."""


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts = {name: fact for name, fact in getattr(record, "facts", {}).items() if fact is not None}
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **facts}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def log(
    event: str,
    *,
    level: int = logging.INFO,
    exc_info: BaseException | None = None,
    **facts: Any,  # noqa: ANN401 - anything that JSON can say
) -> None:
    """Logs ``event`` with its facts (those that are none are left out) and the exception's traceback."""
    LOGGER.log(level, event, extra={"facts": facts}, exc_info=exc_info)


def log_to_stderr() -> None:
    """Sends this package's logs to stderr; what other packages log stays as it is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
