"""The devices' own table, for whoever is in a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam

from tpm_mtls.errors import StateError
from tpm_mtls_server.registry import schema
from tpm_mtls_server.registry.reading import device_row, seconds

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from tpm_mtls_server.registry.rows import DeviceRow

LIST_HINT: Final = "see: tpm-mtls server device list"

FORGOTTEN: Final[dict[str, None]] = dict.fromkeys(
    (
        "refused_tpm",
        "refused_at",
        "judged_at",
        "trusted",
        "check",
        "pending",
        "reason",
        "trusted_at",
        "trusted_until",
        "clock",
        "endorsement_key",
    )
)
"""What a device's row says about its TPM, undone."""


# made once: each request asks this, and making a statement takes SQLAlchemy longer than the database needs to answer it
_FIND: Final = schema.devices.select().where(schema.devices.c.name == bindparam("wanted"))


def get_device(connection: Connection, name: str) -> DeviceRow:
    """The device ``name``, which is there."""
    return device_row(connection.execute(_FIND, {"wanted": name}).one())


def find_device(connection: Connection, name: str) -> DeviceRow | None:
    """The device ``name``; none if it never came."""
    row = connection.execute(_FIND, {"wanted": name}).one_or_none()
    return None if row is None else device_row(row)


def set_baseline(
    connection: Connection, name: str, at: int, pcrs: str, event_log: bytes | None, *, by: str, now: datetime
) -> None:
    """Makes this the baseline of the device ``name``, in place of the one before."""
    connection.execute(schema.baselines.delete().where(schema.baselines.c.device == name))
    row = {"device": name, "at": at, "pcrs": pcrs, "event_log": event_log}
    row |= {"accepted_at": seconds(now), "accepted_by": by}
    connection.execute(schema.baselines.insert().values(row))


def require_device(connection: Connection, name: str) -> DeviceRow:
    """The device ``name``.

    Raises:
        StateError: it never came.
    """
    device = find_device(connection, name)
    if device is None:
        raise StateError(f"no device {name[:80]!r} ever came", hint=LIST_HINT)
    return device


def update_device(connection: Connection, device: DeviceRow, **changes: object) -> None:
    """Changes columns of the device; what was judged by the old ones, and is not kept yet, is judged again."""
    changes["revision"] = device.revision + 1
    connection.execute(schema.devices.update().where(schema.devices.c.name == device.name).values(**changes))
