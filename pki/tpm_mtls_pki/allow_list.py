"""The allow-list: endorsement keys (EK) that the administrator vouches for, with the device's name and its group."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exc

from tpm_mtls.device_names import check_device_name
from tpm_mtls.errors import StateError, UsageError
from tpm_mtls_pki import audit
from tpm_mtls_pki.clock import from_seconds, seconds
from tpm_mtls_pki.groups import DEFAULT, check_group_name
from tpm_mtls_pki.schema import allow_list, select_by

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

MANIFEST_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of a manifest; a hundred thousand devices have 11 MB."""

COLUMNS: Final = ("ek_hash", "device", "group")

_HASH = re.compile(r"[0-9a-f]{64}")
_HASH_HINT = "SHA-256 of the endorsement key: openssl pkey -pubin -in ek.pem -outform DER | sha256sum"

_BY_TPM = select_by(allow_list.c.ek_hash)
_BY_DEVICE = select_by(allow_list.c.device)


@dataclass(frozen=True)
class Entry:
    """An endorsement key on the list.

    Attributes:
        ek_hash: SHA-256 of its SubjectPublicKeyInfo, hex.
        device: the device's name; none to name it by the group's rule.
        group: its group.
        added_at: when it was put there; none if it was not yet.
    """

    ek_hash: str
    device: str | None = None
    group: str = DEFAULT
    added_at: datetime | None = None


def check_ek_hash(text: str) -> str:
    """Returns ``text`` (any case, colons allowed) as the store writes hashes of endorsement keys.

    Raises:
        UsageError: it is none.
    """
    digits = text.strip().lower().replace(":", "")
    if not _HASH.fullmatch(digits):
        raise UsageError(f"not the hash of an endorsement key: {text[:80]!r}", hint=_HASH_HINT)
    return digits


def parse_manifest(data: bytes) -> list[Entry]:
    """The entries of a factory's manifest: CSV (RFC 4180) with a header line, columns ``ek_hash,device,group``.

    ``device`` and ``group`` may be missing or empty. All of it is checked before anything is done.

    Raises:
        UsageError: larger than `MANIFEST_LIMIT`, no such CSV, or an unusable hash or name, or one twice; with its line.
    """
    if len(data) > MANIFEST_LIMIT:
        raise UsageError(f"a manifest of more than {MANIFEST_LIMIT} bytes", hint="split it")
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        names = [name.strip() for name in rows.fieldnames or ()]
        if "ek_hash" not in names or not set(names) <= set(COLUMNS) or len(set(names)) != len(names):
            raise UsageError("the manifest's first line names other columns", hint=f"expected: {','.join(COLUMNS)}")
        rows.fieldnames = names
        found = [_manifest_entry(row, rows.line_num) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"that is no CSV file: {error}", hint=f"columns: {','.join(COLUMNS)}; UTF-8") from error
    if not found:
        raise UsageError("the manifest has no entries", hint="one line for each device, below the header line")
    _check_unique([each.ek_hash for each in found])
    _check_unique([each.device for each in found if each.device is not None])
    return found


def add(connection: Connection, entries: Sequence[Entry], *, now: datetime) -> None:
    """Puts endorsement keys on the list; ``connection`` is in a transaction, so all of them or none.

    Raises:
        StateError: a key is there already, or another one for its device.
    """
    for entry in entries:
        values = {"device": entry.device, "group_name": entry.group, "added_at": seconds(now)}
        try:
            connection.execute(allow_list.insert().values(ek_hash=entry.ek_hash, **values))
        except exc.IntegrityError as error:
            what = f"{entry.ek_hash} ({entry.device})" if entry.device else entry.ek_hash
            raise StateError(
                f"the allow-list has that endorsement key, or another one for its device: {what}",
                hint="see: tpm-mtls pki allow list; remove the old one: tpm-mtls pki allow remove",
            ) from error
        detail = {"ek": entry.ek_hash, "device": entry.device, "group": entry.group}
        audit.append(connection, "allow-added", entry.device or entry.ek_hash, detail, now=now)


def find(connection: Connection, ek_hash: str) -> Entry | None:
    """The entry of that endorsement key."""
    row = connection.execute(_BY_TPM, {"wanted": ek_hash}).one_or_none()
    return _entry(row) if row else None


def of_device(connection: Connection, device: str) -> Entry | None:
    """The entry that has that device's name."""
    row = connection.execute(_BY_DEVICE, {"wanted": device}).one_or_none()
    return _entry(row) if row else None


def listing(connection: Connection) -> list[Entry]:
    """All entries, oldest first."""
    order = (allow_list.c.added_at, allow_list.c.ek_hash)
    return [_entry(row) for row in connection.execute(allow_list.select().order_by(*order))]


def remove(connection: Connection, ek_hash: str, *, now: datetime) -> None:
    """Takes an endorsement key off the list; certificates that were issued stay valid.

    Raises:
        StateError: it is not there.
    """
    entry = find(connection, ek_hash)
    if entry is None:
        raise StateError(f"the allow-list has no {ek_hash}", hint="see: tpm-mtls pki allow list")
    connection.execute(allow_list.delete().where(allow_list.c.ek_hash == ek_hash))
    detail = {"ek": ek_hash, "device": entry.device, "group": entry.group}
    audit.append(connection, "allow-removed", entry.device or ek_hash, detail, now=now)


def _manifest_entry(row: dict[str | Any, str | Any], line: int) -> Entry:
    if None in row or None in row.values():
        raise UsageError(f"line {line} of the manifest has another number of columns", hint=f"{','.join(COLUMNS)}")
    values = {name: text.strip() for name, text in row.items()}
    try:
        device, group = values.get("device") or None, values.get("group") or DEFAULT
        return Entry(
            check_ek_hash(values["ek_hash"]),
            check_device_name(device) if device is not None else None,
            check_group_name(group),
        )
    except UsageError as error:
        raise UsageError(f"line {line} of the manifest: {error}", hint=error.hint) from error


def _check_unique(values: Sequence[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise UsageError(f"the manifest has {value} twice", hint="one line for each device")
        seen.add(value)


def _entry(row: Row[Any]) -> Entry:
    return Entry(row.ek_hash, row.device, row.group_name, from_seconds(row.added_at))
