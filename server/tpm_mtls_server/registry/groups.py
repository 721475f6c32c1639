"""Groups of devices, and what their devices are held against."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy

from tpm_mtls.errors import StateError, UsageError
from tpm_mtls_server.registry import audit, schema
from tpm_mtls_server.registry.reading import group_row, reference_row, seconds
from tpm_mtls_server.registry.rows import SIGNED_PCRS, Mode, ReferenceKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from tpm_mtls_server.database import Database
    from tpm_mtls_server.registry.rows import GroupRow, ReferenceRow

REFERENCES: Final = 64
"""References of one group at the most."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HINT = "see: tpm-mtls server group list"


class Groups:
    """The groups, for operators; ``by`` is the operator's name. Reached as `Registry.groups`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[GroupRow]:
        """All groups by name."""
        with self._database.reading() as connection:
            return [group_row(row) for row in connection.execute(schema.groups.select().order_by(schema.groups.c.name))]

    def get(self, name: str) -> GroupRow:
        """The group ``name``.

        Raises:
            StateError: there is none.
        """
        with self._database.reading() as connection:
            return find(connection, name)

    def define(
        self, name: str, *, mode: Mode | None = None, pcrs: Sequence[int] | None = None, by: str, now: datetime
    ) -> GroupRow:
        """Makes the group ``name`` or changes it.

        Args:
            name: lower-case letters, digits and hyphens, 32 at the most.
            mode: what its devices are held against; none leaves it, or learns.
            pcrs: the PCRs that count, of 0 to 15; empty for all; none leaves them, or takes all.
            by: who does that.
            now: the present.

        Raises:
            UsageError: the name or a PCR is out of bounds.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"not a group's name: {name[:40]!r}", hint="lower-case letters, digits and hyphens")
        if pcrs is not None and not set(pcrs) <= set(SIGNED_PCRS):
            raise UsageError("a quote signs the PCRs 0 to 15", hint="take some of those")
        table = schema.groups
        with self._database.writing() as connection:
            row = connection.execute(table.select().where(table.c.name == name)).one_or_none()
            before = None if row is None else group_row(row)
            chosen = mode or (before.mode if before else Mode.LEARN)
            numbers = tuple(sorted(set(pcrs))) if pcrs is not None else (before.pcrs if before else ())
            values = {"mode": chosen.value, "pcrs": msgspec.json.encode(numbers).decode()}
            if before is None:
                connection.execute(table.insert().values(name=name, revision=0, **values))
            else:
                connection.execute(table.update().where(table.c.name == name).values(**values))
                touch(connection, name)
            audit.append(
                connection, "group-set", f"group:{name}", actor=by, now=now, mode=chosen.value, pcrs=list(numbers)
            )
            return find(connection, name)

    def references(self, name: str) -> list[ReferenceRow]:
        """What the devices of the group ``name`` are held against, if its mode is ``values`` or ``signed``."""
        with self._database.reading() as connection:
            return references(connection, name)

    def add_reference(self, name: str, kind: ReferenceKind, content: str, *, by: str, now: datetime) -> ReferenceRow:
        """Adds a reference; ``content`` must have been parsed and, if it is signed, verified.

        Raises:
            StateError: there is no such group, it has that reference, or too many.
        """
        table = schema.reference_values
        digest = hashlib.sha256(content.encode()).hexdigest()
        with self._database.writing() as connection:
            find(connection, name)
            there = references(connection, name)
            if any(each.digest == digest and each.kind is kind for each in there):
                raise StateError(f"the group {name} has that reference already", hint=_HINT)
            if len(there) == REFERENCES:
                raise StateError(f"the group {name} has {REFERENCES} references", hint="remove some that are outdated")
            row: dict[str, Any] = {"group_name": name, "kind": kind.value, "digest": digest, "content": content}
            row |= {"added_at": seconds(now), "added_by": by}
            number = connection.execute(table.insert().values(row).returning(table.c.id)).scalar_one()
            touch(connection, name)
            audit.append(
                connection, "reference-added", f"group:{name}", actor=by, now=now, kind=kind.value, digest=digest
            )
            return reference_row(connection.execute(table.select().where(table.c.id == number)).one())

    def remove_reference(self, number: int, *, by: str, now: datetime) -> None:
        """Removes the reference with that number.

        Raises:
            StateError: there is none.
        """
        table = schema.reference_values
        with self._database.writing() as connection:
            row = connection.execute(table.select().where(table.c.id == number)).one_or_none()
            if row is None:
                raise StateError(f"there is no reference {number}", hint=_HINT)
            connection.execute(table.delete().where(table.c.id == number))
            touch(connection, row.group_name)
            audit.append(
                connection, "reference-removed", f"group:{row.group_name}", actor=by, now=now, digest=row.digest
            )


def find(connection: Connection, name: str) -> GroupRow:
    """The group ``name``.

    Raises:
        StateError: there is none.
    """
    row = connection.execute(schema.groups.select().where(schema.groups.c.name == name)).one_or_none()
    if row is None:
        raise StateError(f"there is no group {name[:40]!r}", hint=_HINT)
    return group_row(row)


def references(connection: Connection, name: str) -> list[ReferenceRow]:
    """The references of the group ``name``, oldest first."""
    table = schema.reference_values
    query = table.select().where(table.c.group_name == name).order_by(table.c.id)
    return [reference_row(row) for row in connection.execute(query)]


def touch(connection: Connection, name: str) -> None:
    """Marks the group ``name`` as changed: all its devices are to show a quote."""
    table = schema.groups
    connection.execute(table.update().where(table.c.name == name).values(revision=table.c.revision + 1))
    devices = schema.devices
    connection.execute(devices.update().where(devices.c.group_name == name).values(wanted=sqlalchemy.true()))
