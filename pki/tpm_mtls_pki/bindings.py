"""Which TPM is which device: one for one, for good, until an administrator releases it (check 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import StateError
from tpm_mtls_pki import audit
from tpm_mtls_pki.clock import from_seconds, seconds
from tpm_mtls_pki.schema import allow_list, approvals, bindings, select_by

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row
    from sqlalchemy.sql import Select

_OF_DEVICE = select_by(bindings.c.device, bindings.c.released_at.is_(None))
_OF_TPM = select_by(bindings.c.ek_hash, bindings.c.released_at.is_(None))
_EVER = select_by(bindings.c.device).limit(1)
_INSERT = bindings.insert()


@dataclass(frozen=True)
class Binding:
    """A TPM and a device that belong together, or did.

    Attributes:
        device: the device's name.
        ek_hash: the TPM: SHA-256 of its endorsement key's SubjectPublicKeyInfo, hex.
        bound_at: since when.
        released_at: until when; none while it stands.
    """

    device: str
    ek_hash: str
    bound_at: datetime
    released_at: datetime | None


def of_device(connection: Connection, device: str) -> Binding | None:
    """The binding of ``device`` that stands."""
    return _standing(connection, _OF_DEVICE, device)


def of_tpm(connection: Connection, ek_hash: str) -> Binding | None:
    """The binding of the TPM ``ek_hash`` that stands."""
    return _standing(connection, _OF_TPM, ek_hash)


def was_bound(connection: Connection, device: str) -> bool:
    """Whether ``device`` was ever seen with a TPM; a release does not undo that."""
    return connection.execute(_EVER, {"wanted": device}).first() is not None


def listing(connection: Connection) -> list[Binding]:
    """All bindings that were ever made, oldest first."""
    return [_binding(row) for row in connection.execute(bindings.select().order_by(bindings.c.id))]


def bind(connection: Connection, device: str, ek_hash: str, *, now: datetime) -> None:
    """Binds the TPM to the device. The store refuses a second binding of either that stands."""
    connection.execute(_INSERT, {"device": device, "ek_hash": ek_hash, "bound_at": seconds(now)})
    audit.append(connection, "device-bound", device, {"check": 8, "ek": ek_hash}, now=now)


def release(connection: Connection, device: str, *, now: datetime) -> Binding:
    """Ends the binding of ``device``, so that its name may go to another TPM; returns what it was.

    The old TPM cannot take the name again by itself: its entry on the allow-list and its approval go too. A device that
    was seen with a TPM still needs one. Certificates that were issued stay valid until they are revoked.

    Raises:
        StateError: it is bound to none.
    """
    binding = of_device(connection, device)
    if binding is None:
        raise StateError(f"{device} is bound to no TPM", hint="see: tpm-mtls pki release --list")
    connection.execute(
        bindings.update()
        .where(bindings.c.device == device, bindings.c.released_at.is_(None))
        .values(released_at=seconds(now))
    )
    for table in (allow_list, approvals):
        connection.execute(table.delete().where(table.c.ek_hash == binding.ek_hash))
    audit.append(connection, "device-released", device, {"ek": binding.ek_hash}, now=now)
    return binding


def _standing(connection: Connection, query: Select[Any], wanted: str) -> Binding | None:
    row = connection.execute(query, {"wanted": wanted}).one_or_none()
    return _binding(row) if row else None


def _binding(row: Row[Any]) -> Binding:
    released = None if row.released_at is None else from_seconds(row.released_at)
    return Binding(row.device, row.ek_hash, from_seconds(row.bound_at), released)
