"""A device comes: is it the one that the registry knows by that name?"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tpm_mtls.errors import CredentialError
from tpm_mtls_server.registry import audit, schema
from tpm_mtls_server.registry.device_table import find_device, get_device
from tpm_mtls_server.registry.reading import seconds

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from tpm_mtls_server.database import Database
    from tpm_mtls_server.peer import DevicePeer
    from tpm_mtls_server.registry.rows import DeviceRow

SEEN_EVERY: Final = timedelta(minutes=1)
"""How often ``last_seen`` is written, at the most, and the certificate with it."""

NOTED_EVERY: Final = timedelta(days=1)
"""How often the same refusal of a certificate goes into the audit log, at the most; another one, `SEEN_EVERY`."""


class Contacts:
    """Devices as they come. Its calls block and may come from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def admit(self, peer: DevicePeer, *, now: datetime) -> DeviceRow:
        """The device behind ``peer``, whose certificate is valid; one that never came before is taken in.

        1. A device that was seen with a TPM comes with one: never from TPM to software.
        2. And with the same one: a replaced TPM is another device, until an operator says otherwise
           (`Registry.release`).

        Raises:
            CredentialError: 1 or 2; the audit log has it.
            StorageError: the database does not answer.
        """
        with self._database.reading() as connection:
            device = find_device(connection, peer.device)
        if device is not None and (refusal := _judge(device, peer)) is not None and _is_noted(device, peer, now):
            raise refusal
        if device is not None and _nothing_to_write(device, peer, now):
            return device
        with self._database.writing() as connection:
            device = find_device(connection, peer.device)  # another process may have been faster
            if device is None:
                return _take_in(connection, peer, now)
            refusal = _judge(device, peer)
            if refusal is None:
                return _note_contact(connection, device, peer, now)
            _note_refusal(connection, device, peer, now)
        raise refusal


def _judge(device: DeviceRow, peer: DevicePeer) -> CredentialError | None:
    if device.tpm is None or (peer.tpm is not None and str(peer.tpm) == device.tpm):
        return None
    if peer.tpm is None:  # 1
        return CredentialError(
            "the device was seen with a TPM, and its certificate names none",
            hint="use the identity in its TPM; a machine without one gets another name",
        )
    return CredentialError(  # 2
        "the certificate names another TPM than the device had",
        hint=f"was its board replaced? an operator may accept it: tpm-mtls server device release {device.name}",
    )


def _nothing_to_write(device: DeviceRow, peer: DevicePeer, now: datetime) -> bool:
    # while a certificate is renewed a device comes with the old and the new one by turns: that is not written each time
    return device.tpm == _tpm(peer) and abs(now - device.last_seen) < SEEN_EVERY


def _take_in(connection: Connection, peer: DevicePeer, now: datetime) -> DeviceRow:
    row = {
        "name": peer.device,
        "group_name": schema.DEFAULT_GROUP,
        "first_seen": seconds(now),
        "last_seen": seconds(now),
        "serial": peer.serial_hex,
        "not_after": seconds(peer.not_after),
        "certificate": peer.certificate,
        "tpm": _tpm(peer),
        "revision": 0,
        "wanted": True,
    }
    connection.execute(schema.devices.insert().values(row))
    audit.append(connection, "first-seen", peer.device, now=now, tpm=_tpm(peer), serial=peer.serial_hex)
    return get_device(connection, peer.device)


def _note_contact(connection: Connection, device: DeviceRow, peer: DevicePeer, now: datetime) -> DeviceRow:
    changes: dict[str, Any] = {"last_seen": seconds(now), "serial": peer.serial_hex}
    changes |= {"not_after": seconds(peer.not_after), "certificate": peer.certificate}
    if device.tpm != _tpm(peer):
        changes |= {"tpm": _tpm(peer), "revision": device.revision + 1, "wanted": True}
        audit.append(connection, "tpm-seen", device.name, now=now, tpm=_tpm(peer), serial=peer.serial_hex)
    connection.execute(schema.devices.update().where(schema.devices.c.name == device.name).values(changes))
    return get_device(connection, peer.device)


def _is_noted(device: DeviceRow, peer: DevicePeer, now: datetime) -> bool:
    if device.refused_at is None:
        return False
    same = device.refused_tpm == (_tpm(peer) or "")
    return abs(now - device.refused_at) < (NOTED_EVERY if same else SEEN_EVERY)


def _note_refusal(connection: Connection, device: DeviceRow, peer: DevicePeer, now: datetime) -> None:
    if _is_noted(device, peer, now):
        return
    offered = _tpm(peer) or ""
    changes = {"refused_tpm": offered, "refused_at": seconds(now)}
    connection.execute(schema.devices.update().where(schema.devices.c.name == device.name).values(changes))
    audit.append(connection, "certificate-refused", device.name, now=now, tpm=offered or None, serial=peer.serial_hex)


def _tpm(peer: DevicePeer) -> str | None:
    return None if peer.tpm is None else str(peer.tpm)
