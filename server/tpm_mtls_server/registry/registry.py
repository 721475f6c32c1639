"""What operators see of the registry, and what they do to a device."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from tpm_mtls.errors import StateError
from tpm_mtls_server.database import Database
from tpm_mtls_server.registry import audit, groups, schema
from tpm_mtls_server.registry.device_table import (
    FORGOTTEN,
    LIST_HINT,
    find_device,
    get_device,
    require_device,
    set_baseline,
    update_device,
)
from tpm_mtls_server.registry.reading import (
    audit_row,
    baseline_row,
    device_row,
    key_row,
    observation_row,
    quote_row,
    seconds,
)
from tpm_mtls_server.registry.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection, Row

    from tpm_mtls.attestation.messages import DeviceState
    from tpm_mtls_server.registry.rows import (
        AttestationKeyRow,
        AuditRow,
        BaselineRow,
        DeviceRow,
        ObservationRow,
        QuoteRow,
    )
    from tpm_mtls_server.registry.summary import Summary

PAGE: Final = 1000
"""Rows of a list, unless somebody wants fewer."""

NOTE_LIMIT: Final = 500
"""Characters of a reason that an operator gives."""


class Registry:
    """The registry, for operators. Its calls block and may come from any thread; ``by`` is the operator's name.

    What an operator changes happens with its row in the audit log, or not at all.
    """

    def __init__(self, database: Database) -> None:
        """Takes the registry in ``database``, which is made if there is none.

        Raises:
            StateError: it is of another version.
            StorageError: the database refuses.
        """
        schema.prepare(database)
        self._database = database
        self.groups = groups.Groups(database)

    @classmethod
    @contextlib.contextmanager
    def open(cls, url: str) -> Iterator[Registry]:
        """The registry in the database at ``url``, as long as the block lasts.

        Raises:
            UsageError: the URL is wrong, has a password in it, or its driver is not installed.
            StateError, StorageError: as `Registry`.
        """
        database = Database(url)
        with contextlib.closing(database):
            yield cls(database)

    def device(self, name: str) -> DeviceRow | None:
        """The device ``name``; none if it never came."""
        with self._database.reading() as connection:
            return find_device(connection, name)

    def devices(
        self,
        *,
        group: str | None = None,
        state: DeviceState | None = None,
        now: datetime,
        after: str = "",
        limit: int = PAGE,
    ) -> list[DeviceRow]:
        """The devices by name.

        Args:
            group: only this group's.
            state: only those that have it at ``now``.
            now: the present.
            after: only names after this one: the last of the page before.
            limit: at most so many.
        """
        query = schema.devices.select().where(schema.devices.c.name > after).order_by(schema.devices.c.name)
        if group is not None:
            query = query.where(schema.devices.c.group_name == group)
        found: list[DeviceRow] = []
        with self._database.reading() as connection, connection.execute(query) as rows:
            for row in rows:
                device = device_row(row)
                if state is None or device.state(now) is state:
                    found.append(device)
                    if len(found) == limit:
                        break
        return found

    def summary(self, now: datetime) -> Summary:
        """How many devices there are at ``now``, by state and by what they lack."""
        with self._database.reading() as connection:
            return summarize(connection, now)

    def quotes(self, name: str) -> list[QuoteRow]:
        """The quotes of a device that are kept, the newest first."""
        query = schema.quotes.select().where(schema.quotes.c.device == name).order_by(schema.quotes.c.id.desc())
        with self._database.reading() as connection:
            return [quote_row(row) for row in connection.execute(query)]

    def baseline(self, name: str) -> BaselineRow | None:
        """What a device is held against, if its group's mode is ``learn`` or ``approve``; none if there is nothing."""
        row = self._of_device(schema.baselines, name)
        return None if row is None else baseline_row(row)

    def observation(self, name: str) -> ObservationRow | None:
        """What `approve` would accept: the last quote that only the policy could refuse; none if there is none."""
        row = self._of_device(schema.observations, name)
        return None if row is None else observation_row(row)

    def audit(self, subject: str | None = None, *, limit: int = PAGE) -> list[AuditRow]:
        """The newest rows of the audit log, the newest first; only those about ``subject``, if it is given."""
        query = schema.audit.select().order_by(schema.audit.c.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(schema.audit.c.subject == subject)
        with self._database.reading() as connection:
            return [audit_row(row) for row in connection.execute(query)]

    def approve(self, name: str, *, by: str, now: datetime, boot: str | None = None) -> BaselineRow:
        """Takes what the device's last genuine quote showed as its baseline; its next quote is held against that.

        The clock that its TPM had is forgotten: if that fell, for a reason that the operator knows, it starts anew.

        Args:
            name: the device.
            by: who approves.
            now: the present.
            boot: only if this is the `ObservationRow.digest` of what it showed: it may have shown something else since
                the operator looked.

        Raises:
            StateError: there is no such device, it has shown no genuine quote, or another than ``boot``.
        """
        with self._changing(name) as (connection, device):
            seen = connection.execute(schema.observations.select().where(schema.observations.c.device == name))
            row = seen.one_or_none()
            if row is None:
                raise StateError(
                    f"{device.name} has shown nothing that could be approved",
                    hint="let it send a quote first: tpm-mtls agent check",
                )
            shown = observation_row(row).digest
            if boot not in {None, shown}:
                raise StateError(
                    f"{device.name} has shown another boot since: its PCR digest is {shown}",
                    hint=f"see what it is: tpm-mtls server device show {device.name}",
                )
            set_baseline(connection, name, row.at, row.pcrs, row.event_log, by=by, now=now)
            update_device(connection, device, wanted=True, clock=None)
            audit.append(connection, "baseline-approved", name, actor=by, now=now, quote_at=row.at, boot=shown)
            found = connection.execute(schema.baselines.select().where(schema.baselines.c.device == name)).one()
            return baseline_row(found)

    def quarantine(self, name: str, *, reason: str, by: str, now: datetime) -> DeviceRow:
        """Shuts the device out until `release`; it may still report its health and send quotes.

        Raises:
            StateError: there is no such device, or it is shut out already.
        """
        with self._changing(name) as (connection, device):
            if device.quarantined_at is not None:
                raise StateError(f"{name} is quarantined already", hint="let it in: tpm-mtls server device release")
            note = reason[:NOTE_LIMIT]
            update_device(connection, device, quarantined_at=seconds(now), quarantine_reason=note)
            audit.append(connection, "quarantined", name, actor=by, now=now, reason=note)
            return get_device(connection, name)

    def release(self, name: str, *, by: str, now: datetime) -> DeviceRow:
        """Ends the device's quarantine; and if a certificate with another TPM was refused, takes that TPM as its own.

        With another TPM it is another machine: baseline, verdict, clock and enrolled attestation keys of the old one
        are forgotten. A device that had a TPM is never taken without one.

        Raises:
            StateError: there is no such device, or nothing to release.
        """
        with self._changing(name) as (connection, device):
            changes: dict[str, Any] = {}
            if device.quarantined_at is not None:
                changes |= {"quarantined_at": None, "quarantine_reason": None}
            if device.refused_tpm:
                changes |= FORGOTTEN | {"tpm": device.refused_tpm}
                for table in (schema.baselines, schema.observations, schema.nonces, schema.attestation_keys):
                    connection.execute(table.delete().where(table.c.device == name))
            if not changes:
                raise StateError(f"{name} is not quarantined", hint=LIST_HINT)
            update_device(connection, device, wanted=True, **changes)
            audit.append(connection, "released", name, actor=by, now=now, tpm=device.refused_tpm or None)
            return get_device(connection, name)

    def move(self, name: str, group: str, *, by: str, now: datetime) -> DeviceRow:
        """Puts the device into ``group``.

        Raises:
            StateError: there is no such device or group.
        """
        with self._changing(name) as (connection, device):
            groups.find(connection, group)
            update_device(connection, device, group_name=group, wanted=True)
            audit.append(connection, "moved", name, actor=by, now=now, group=group, before=device.group)
            return get_device(connection, name)

    def enroll_key(self, device: str, key_name: str, *, by: str, now: datetime) -> AttestationKeyRow:
        """Records an operator's word that the attestation key with the Name ``key_name`` (hex) is the device's.

        The device need not have come yet. One key has one device.

        Raises:
            StateError: the key is recorded already.
        """
        table = schema.attestation_keys
        with self._database.writing() as connection:
            there = connection.execute(table.select().where(table.c.name == key_name)).one_or_none()
            if there is not None:
                raise StateError(f"that attestation key is recorded for {there.device}", hint=LIST_HINT)
            row = {"name": key_name, "device": device, "added_at": seconds(now), "added_by": by}
            connection.execute(table.insert().values(row))
            audit.append(connection, "key-enrolled", device, actor=by, now=now, key=key_name)
            return key_row(connection.execute(table.select().where(table.c.name == key_name)).one())

    def withdraw_key(self, key_name: str, *, by: str, now: datetime) -> None:
        """Takes that word back; the device has to show another quote before it counts as attested again.

        Raises:
            StateError: there is no such record.
        """
        table = schema.attestation_keys
        with self._database.writing() as connection:
            row = connection.execute(table.delete().where(table.c.name == key_name).returning(table.c.device)).first()
            if row is None:
                raise StateError("no such attestation key is recorded", hint=LIST_HINT)
            device = find_device(connection, row.device)
            if device is not None:
                ends = None if device.trusted_until is None else min(seconds(now), seconds(device.trusted_until))
                update_device(connection, device, wanted=True, trusted_until=ends)
            audit.append(connection, "key-withdrawn", row.device, actor=by, now=now, key=key_name)

    def keys(self, device: str) -> list[AttestationKeyRow]:
        """The attestation keys that operators recorded for ``device``."""
        table = schema.attestation_keys
        with self._database.reading() as connection:
            return [key_row(row) for row in connection.execute(table.select().where(table.c.device == device))]

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[tuple[Connection, DeviceRow]]:
        with self._database.writing() as connection:
            yield connection, require_device(connection, name)

    def _of_device(self, table: Table, name: str) -> Row[Any] | None:
        with self._database.reading() as connection:
            return connection.execute(table.select().where(table.c.device == name)).one_or_none()
