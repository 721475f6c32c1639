"""The queue of TPMs whose first certificate an administrator has to approve. One place in it for each TPM.

A request's number is never given to another one: whoever repeats a command approves no other TPM by it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy

from tpm_mtls.errors import StateError, UsageError
from tpm_mtls_pki import allow_list, audit, bindings
from tpm_mtls_pki.clock import from_seconds, seconds
from tpm_mtls_pki.schema import approvals, select_by

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

QUEUE_LIMIT: Final = 1000
"""TPMs that may wait at a time: more than anybody decides about by hand."""

_REQUESTED, _GRANTED, _DENIED = "approval-requested", "approval-granted", "approval-denied"  # in the audit log

_BY_TPM = select_by(approvals.c.ek_hash)
_DELETE = approvals.delete().where(approvals.c.ek_hash == sqlalchemy.bindparam("wanted"))


class State(enum.Enum):
    """What became of a request."""

    WAITING = "waiting"
    GRANTED = "granted"
    DENIED = "denied"


@dataclass(frozen=True)
class Approval:
    """A TPM in the queue.

    Attributes:
        id: by which the administrator names it; no other request ever has it.
        ek_hash: the TPM: SHA-256 of its endorsement key's SubjectPublicKeyInfo, hex.
        asked: the device name that it would get, or asks for; none if it asked for none.
        endorsed_by: who says that the TPM is genuine.
        requested_at: when it came first.
        state: what became of it.
        decided_at: when.
        device: the name that was granted.
    """

    id: int
    ek_hash: str
    asked: str | None
    endorsed_by: str
    requested_at: datetime
    state: State
    decided_at: datetime | None
    device: str | None


def find(connection: Connection, ek_hash: str) -> Approval | None:
    """The TPM's place in the queue."""
    row = connection.execute(_BY_TPM, {"wanted": ek_hash}).one_or_none()
    return _approval(row) if row else None


def listing(connection: Connection) -> list[Approval]:
    """The whole queue, oldest first. Requests that were granted and used are gone from it."""
    return [_approval(row) for row in connection.execute(approvals.select().order_by(approvals.c.id))]


def request(
    connection: Connection, ek_hash: str, *, asked: str | None, endorsed_by: str, now: datetime
) -> Approval | None:
    """Puts the TPM in the queue, or changes the name that it asks for while it waits; none if the queue is full."""
    known = find(connection, ek_hash)
    if known is None:
        waiting = approvals.c.state == State.WAITING.value
        count = connection.execute(sqlalchemy.select(sqlalchemy.func.count()).where(waiting)).scalar_one()
        if count >= QUEUE_LIMIT:
            return None
        number = _new_number(connection)
        values = {"id": number, "asked": asked, "endorsed_by": endorsed_by, "requested_at": seconds(now)}
        connection.execute(approvals.insert().values(ek_hash=ek_hash, state=State.WAITING.value, **values))
        detail = {"request": number, "ek": ek_hash, "asked": asked, "endorsed_by": endorsed_by}
        audit.append(connection, _REQUESTED, asked or ek_hash, detail, now=now)
    elif known.state is State.WAITING and known.asked != asked:
        connection.execute(approvals.update().where(approvals.c.ek_hash == ek_hash).values(asked=asked))
    return find(connection, ek_hash)


def grant(connection: Connection, number: int, *, device: str | None, now: datetime) -> Approval:
    """Approves request ``number``, under the name ``device`` or the one that it asked for; returns what it is now.

    Raises:
        StateError: there is none of that number, it is granted already or finished, or the name is another TPM's.
        UsageError: there is no name.
    """
    approval = _get(connection, number)
    if approval.state is State.GRANTED:
        raise StateError(f"request {number} is granted already", hint="see: tpm-mtls pki approval list")
    name = device or approval.asked
    if name is None:
        raise UsageError(f"request {number} asks for no name", hint="give it one: --device")
    if bindings.of_device(connection, name) is not None:
        raise StateError(f"{name} belongs to another TPM", hint=f"tpm-mtls pki release --device {name}")
    listed = allow_list.of_device(connection, name)
    if listed is not None and listed.ek_hash != approval.ek_hash:
        raise StateError(
            f"the allow-list has {name} for another TPM", hint=f"tpm-mtls pki allow remove --ek-hash {listed.ek_hash}"
        )
    _decide(connection, approval, State.GRANTED, name, now)
    audit.append(connection, _GRANTED, name, {"request": number, "ek": approval.ek_hash}, now=now)
    return _get(connection, number)


def deny(connection: Connection, number: int, *, now: datetime) -> Approval:
    """Refuses request ``number`` and every later one of that TPM; returns what it is now. ``grant`` undoes it.

    Raises:
        StateError: there is none of that number, or it is denied already or finished.
    """
    approval = _get(connection, number)
    if approval.state is State.DENIED:
        raise StateError(f"request {number} is denied already", hint="see: tpm-mtls pki approval list")
    _decide(connection, approval, State.DENIED, None, now)
    subject = approval.asked or approval.ek_hash
    audit.append(connection, _DENIED, subject, {"request": number, "ek": approval.ek_hash}, now=now)
    return _get(connection, number)


def use_up(connection: Connection, ek_hash: str) -> None:
    """Takes the TPM out of the queue: it is bound now."""
    connection.execute(_DELETE, {"wanted": ek_hash})


def _get(connection: Connection, number: int) -> Approval:
    row = connection.execute(approvals.select().where(approvals.c.id == number)).one_or_none()
    if row is None:
        raise _missing(connection, number)
    return _approval(row)


def _new_number(connection: Connection) -> int:
    """A number that no request had. The audit log has a row for each that ever was, and loses none.

    The database's own choice would be one more than the highest that is in the table (https://sqlite.org/autoinc.html),
    which finished requests have left; so the numbers of stores that were made before are no higher than that count.
    """
    highest = connection.execute(sqlalchemy.select(sqlalchemy.func.max(approvals.c.id))).scalar_one() or 0
    return max(audit.count(connection, _REQUESTED), highest) + 1


def _missing(connection: Connection, number: int) -> StateError:
    about = audit.entries(connection, _REQUESTED, _GRANTED, _DENIED)
    last = next((each for each in reversed([*about]) if each.detail.get("request") == number), None)
    if last is None:
        return StateError(f"there is no request {number}", hint="see: tpm-mtls pki approval list")
    what = f": it was granted to {last.subject}" if last.event == _GRANTED else ""
    return StateError(
        f"request {number} is finished{what}", hint="which TPM has which name: tpm-mtls pki release --list"
    )


def _decide(connection: Connection, approval: Approval, state: State, device: str | None, now: datetime) -> None:
    values = {"state": state.value, "decided_at": seconds(now), "device": device}
    connection.execute(approvals.update().where(approvals.c.id == approval.id).values(**values))


def _approval(row: Row[Any]) -> Approval:
    return Approval(
        id=row.id,
        ek_hash=row.ek_hash,
        asked=row.asked,
        endorsed_by=row.endorsed_by,
        requested_at=from_seconds(row.requested_at),
        state=State(row.state),
        decided_at=None if row.decided_at is None else from_seconds(row.decided_at),
        device=row.device,
    )
