"""The registry's append-only audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tpm_mtls_server.registry import schema
from tpm_mtls_server.registry.reading import seconds

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection


def append(
    connection: Connection,
    event: str,
    subject: str,
    *,
    actor: str = "",
    now: datetime,
    **detail: Any,  # noqa: ANN401 - anything that JSON can say
) -> None:
    """Adds a row; ``connection`` is in a writing transaction. ``detail`` holds no secret."""
    text = msgspec.json.encode(detail, order="sorted").decode()
    row = {"at": seconds(now), "event": event, "subject": subject, "actor": actor, "detail": text}
    connection.execute(schema.audit.insert().values(row))
