"""Nonces, quotes and health reports of devices."""

from __future__ import annotations

import secrets
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy

from tpm_mtls.attestation.messages import NONCE_LENGTH, DeviceState
from tpm_mtls_server.registry import audit, groups, schema
from tpm_mtls_server.registry.background import Background, TakenNonce
from tpm_mtls_server.registry.device_table import get_device, set_baseline
from tpm_mtls_server.registry.reading import baseline_row, moment, seconds

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from tpm_mtls_server.database import Database
    from tpm_mtls_server.registry.background import Findings, Seen, Shown
    from tpm_mtls_server.registry.rows import DeviceRow

NONCE_LIFETIME: Final = timedelta(minutes=5)
"""How long a nonce is good: a quote and its logs over a slow line take seconds."""

NONCES: Final = 4
"""Nonces of one device that are good at the same time; another one pushes the oldest out."""

QUOTES: Final = 20
"""Quotes kept of one device."""

NOTED_EVERY: Final = timedelta(minutes=1)
"""How often changes of one device's state go into the audit log in the long run, at the most."""

NOTED_AT_ONCE: Final = 5
"""How many of them may go there at once: that a device begins to fail is told even if it has just become attested."""

_DIFFERENCES: Final = 64 * 1024
"""Characters kept of the differences of one quote."""


class Attestations:
    """What devices prove and say. Its calls block and may come from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def give_nonce(self, device: str, *, now: datetime) -> bytes:
        """A fresh nonce for ``device``, which the registry knows; good once, for `NONCE_LIFETIME`."""
        nonce = secrets.token_bytes(NONCE_LENGTH)
        table = schema.nonces
        row = {"nonce": nonce.hex(), "device": device, "expires_at": seconds(now + NONCE_LIFETIME)}
        with self._database.writing() as connection:
            connection.execute(table.insert().values(row))
            mine = table.select().where(table.c.device == device).order_by(table.c.id.desc())
            oldest = connection.execute(mine.offset(NONCES).limit(1)).one_or_none()
            if oldest is not None:
                connection.execute(table.delete().where(table.c.device == device, table.c.id <= oldest.id))
        return nonce

    def take_nonce(self, nonce: bytes, device: str) -> TakenNonce | None:
        """Takes ``nonce`` away, so that nobody gets it again; none if it was never given, or is gone.

        One that was given to another device stays where it is; the answer says so. Whether it has expired is not
        looked at.
        """
        table = schema.nonces
        this = table.c.nonce == nonce.hex()
        with self._database.writing() as connection:
            mine = table.delete().where(this, table.c.device == device).returning(table.c.device, table.c.expires_at)
            row = connection.execute(mine).one_or_none()  # of several who do this at once, one deletes the row
            if row is None:
                row = connection.execute(
                    sqlalchemy.select(table.c.device, table.c.expires_at).where(this)
                ).one_or_none()
            return None if row is None else TakenNonce(nonce, row.device, moment(row.expires_at))

    def background(self, name: str) -> Background:
        """What a quote of the device ``name``, which is known, is judged by."""
        with self._database.reading() as connection:
            return _background(connection, name)

    def record(
        self, before: Background, shown: Shown, findings: Findings, *, lifetime: timedelta, now: datetime
    ) -> DeviceRow | None:
        """Keeps a quote and what became of it, all or nothing; returns the device as it is now.

        Args:
            before: what it was judged by. If that has changed since, nothing is kept and none is returned: the quote
                has to be judged again.
            shown: the quote.
            findings: what became of it. A quote that failed check 1 says nothing about the device, and leaves its
                standing as it was: somebody may have sent an old one again.
            lifetime: how long it counts if it passed.
            now: the present.
        """
        name = before.device.name
        with self._database.writing() as connection:
            device = get_device(connection, name)
            group = groups.find(connection, device.group)
            if (device.revision, group) != (before.device.revision, before.group):
                return None
            if findings.check != 1:
                _stand(connection, device, shown, findings, lifetime=lifetime, now=now)
            if findings.seen is not None:
                _keep_seen(connection, name, findings.seen, learn=findings.learn, now=now)
            after = get_device(connection, name)
            _keep_quote(connection, after, shown, findings, now)
            _note_state(connection, after, findings, now)
            return after

    def report_health(self, name: str, report: str, *, now: datetime) -> bool:
        """Keeps the last health report (a JSON object) of the known device ``name``; whether a quote is wanted."""
        table = schema.devices
        with self._database.writing() as connection:
            values = {"health_at": seconds(now), "health": report}
            connection.execute(table.update().where(table.c.name == name).values(values))
            device = get_device(connection, name)
        return wants_quote(device, now)


def wants_quote(device: DeviceRow, now: datetime) -> bool:
    """Whether the device should show a quote now: somebody asked for it, or none that passed counts for long.

    "For long" is half of the lifetime that the last one was given.
    """
    if device.wanted or device.trusted_at is None or device.trusted_until is None:
        return True
    if device.verdict is None or not device.verdict.trusted:
        return True
    return now >= device.trusted_at + (device.trusted_until - device.trusted_at) / 2


def _background(connection: Connection, name: str) -> Background:
    device = get_device(connection, name)
    baseline = connection.execute(schema.baselines.select().where(schema.baselines.c.device == name)).one_or_none()
    keys = schema.attestation_keys
    clock = connection.execute(schema.devices.select().where(schema.devices.c.name == name)).one().clock
    return Background(
        device=device,
        group=groups.find(connection, device.group),
        references=tuple(groups.references(connection, device.group)),
        baseline=None if baseline is None else baseline_row(baseline),
        clock=clock,
        keys=frozenset(row.name for row in connection.execute(keys.select().where(keys.c.device == name))),
    )


def _stand(
    connection: Connection, device: DeviceRow, shown: Shown, findings: Findings, *, lifetime: timedelta, now: datetime
) -> None:
    changes: dict[str, Any] = {
        "judged_at": seconds(now),
        "trusted": findings.trusted,
        "check": findings.check,
        "pending": findings.pending,
        "reason": findings.reason,
        "wanted": False,
        "revision": device.revision + 1,
    }
    if findings.trusted:
        changes |= {"trusted_at": seconds(now), "trusted_until": seconds(now + lifetime)}
    if findings.clock is not None:  # the quote is genuine
        changes["clock"] = findings.clock
        if device.tpm is not None and shown.endorsement_key is not None:
            changes["endorsement_key"] = shown.endorsement_key
    connection.execute(schema.devices.update().where(schema.devices.c.name == device.name).values(changes))


def _keep_seen(connection: Connection, name: str, seen: Seen, *, learn: bool, now: datetime) -> None:
    pcrs = msgspec.json.encode(seen.pcrs).decode()
    log = None if seen.event_log is None else zlib.compress(seen.event_log)
    table = schema.observations
    connection.execute(table.delete().where(table.c.device == name))
    connection.execute(table.insert().values(device=name, at=seconds(now), pcrs=pcrs, event_log=log))
    if learn:
        set_baseline(connection, name, seconds(now), pcrs, log, by="", now=now)
        audit.append(connection, "baseline-learned", name, now=now)


def _keep_quote(connection: Connection, device: DeviceRow, shown: Shown, findings: Findings, now: datetime) -> None:
    table = schema.quotes
    row = {
        "device": device.name,
        "at": seconds(now),
        "trusted": findings.trusted,
        "check": findings.check,
        "state": device.state(now).value,
        "reason": findings.reason,
        "differences": msgspec.json.encode(_within(findings.differences)).decode(),
        "attestation_key": shown.attestation_key,
        "attest": shown.attest,
        "signature": shown.signature,
        "pcrs": msgspec.json.encode(shown.pcrs).decode(),
    }
    connection.execute(table.insert().values(row))
    mine = table.select().where(table.c.device == device.name).order_by(table.c.id.desc())
    oldest = connection.execute(mine.offset(QUOTES).limit(1)).one_or_none()
    if oldest is not None:
        connection.execute(table.delete().where(table.c.device == device.name, table.c.id <= oldest.id))


def _within(differences: tuple[str, ...]) -> list[str]:
    kept: list[str] = []
    left = _DIFFERENCES
    for each in differences:
        left -= len(each)
        if left < 0:
            break
        kept.append(each)
    return kept


def _note_state(connection: Connection, device: DeviceRow, findings: Findings, now: datetime) -> None:
    """The audit log tells each change of a device's state, but a device that changes all the time does not fill it.

    ``noted_at`` is when the changes noted before are forgotten: each counts for `NOTED_EVERY`, one after the other.
    """
    table = schema.devices
    row = connection.execute(table.select().where(table.c.name == device.name)).one()
    state = device.state(now)
    if row.noted_state == state.value or state is DeviceState.QUARANTINED:
        return
    every = int(NOTED_EVERY.total_seconds())
    counting = (row.noted_at or 0) - seconds(now)
    if not 0 < counting <= NOTED_AT_ONCE * every:  # long ago; or the clock was set back since
        counting = 0
    if counting > (NOTED_AT_ONCE - 1) * every:
        return
    values = {"noted_state": state.value, "noted_at": seconds(now) + counting + every}
    connection.execute(table.update().where(table.c.name == device.name).values(values))
    audit.append(connection, state.value, device.name, now=now, check=findings.check, reason=findings.reason[:500])
