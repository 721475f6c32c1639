"""The store's tables. Times are seconds since 1970 UTC, serial numbers and digests lower-case hex."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    event,
    text,
)

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnElement, Select

VERSION: Final = 2
"""Raised with every change of a table; a store of another version is refused, not guessed at."""

metadata = MetaData()

# one row: its lock puts all writers in a line, on databases that do not do so by themselves
store: Final = Table(
    "store",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("authority", String(64), nullable=False),  # SHA-256 of the issuing CA's certificate
)

certificates: Final = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),
    Column("profile", String(16), nullable=False),
    Column("subject", String(64), nullable=False, index=True),
    Column("key_digest", String(64), nullable=False, index=True),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("grounds", String(64), nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("revoked_at", BigInteger),
    Column("reason", String(32)),
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 of the token, which is 256 random bits
    Column("device", String(64), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("used_at", BigInteger),
    Column("key_digest", String(64)),
    Column("serial", String(40), ForeignKey("certificates.serial")),
)

crls: Final = Table(
    "crls",
    metadata,
    Column("issuer", String(8), nullable=False),  # root or issuing
    Column("number", BigInteger, nullable=False),
    Column("next_update", BigInteger, nullable=False),
    Column("this_update", BigInteger, nullable=False),
    Column("revocations", Integer, nullable=False),  # how many there were in all; it only grows
    Column("der", LargeBinary, nullable=False),
    UniqueConstraint("issuer", "number"),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("event", String(32), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("detail", Text, nullable=False),  # JSON object
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)

ek_roots: Final = Table(
    "ek_roots",
    metadata,
    Column("fingerprint", String(64), primary_key=True),  # SHA-256 of the certificate
    Column("subject", Text, nullable=False),
    Column("is_root", Boolean, nullable=False),  # a trust anchor, or an intermediate CA
    Column("der", LargeBinary, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)

groups: Final = Table(
    "groups",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("approval", String(8), nullable=False),
    Column("naming", String(8), nullable=False),
    Column("imported", Boolean, nullable=False),
    Column("policies", Text, nullable=False),  # JSON array of digests in hex, the empty one for none
)

# endorsement keys (EK) are known by the SHA-256 of their SubjectPublicKeyInfo
allow_list: Final = Table(
    "allow_list",
    metadata,
    Column("ek_hash", String(64), primary_key=True),
    Column("device", String(64), unique=True),
    Column("group_name", String(32), nullable=False),
    Column("added_at", BigInteger, nullable=False),
)

approvals: Final = Table(
    "approvals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("ek_hash", String(64), nullable=False, unique=True),
    Column("asked", String(64)),  # the name that the device asked for
    Column("endorsed_by", Text, nullable=False),
    Column("requested_at", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("decided_at", BigInteger),
    Column("device", String(64)),  # the name that was granted
)

bindings: Final = Table(
    "bindings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device", String(64), nullable=False, index=True),
    Column("ek_hash", String(64), nullable=False, index=True),
    Column("bound_at", BigInteger, nullable=False),
    Column("released_at", BigInteger),
)

# one TPM has one device and one device one TPM, at a time
_standing: Final = text("released_at IS NULL")
for _column in (bindings.c.device, bindings.c.ek_hash):
    Index(f"standing_{_column.name}", _column, unique=True, sqlite_where=_standing, postgresql_where=_standing)

attestations: Final = Table(
    "attestations",
    metadata,
    Column("serial", String(40), ForeignKey("certificates.serial"), primary_key=True),
    Column("device", String(64), nullable=False, index=True),
    Column("key_digest", String(64), nullable=False, index=True),
    Column("key_name", String(132), nullable=False),  # nameAlg and digest of the public area
    Column("ak_name", String(132), nullable=False),
    Column("ek_hash", String(64), nullable=False, index=True),
    Column("endorsed_by", Text, nullable=False),
    Column("residency", String(8), nullable=False),
)


def select_by(column: Column[Any], *conditions: ColumnElement[bool]) -> Select[Any]:
    """The rows whose ``column`` is the parameter ``wanted``, and that meet the conditions.

    For statements that enrollments use: made once, because making one takes SQLAlchemy longer than the database needs
    to answer it.
    """
    return column.table.select().where(column == bindparam("wanted"), *conditions)


def _forbid(table: Table, name: str, what: str, message: str) -> None:
    event.listen(
        table,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there
            f"CREATE TRIGGER {table.name}_{name} BEFORE {what} BEGIN SELECT RAISE(ABORT, '{message}'); END"
        ).execute_if(dialect="sqlite"),
    )


for _operation in ("UPDATE", "DELETE"):
    _forbid(audit, f"no_{_operation.lower()}", f"{_operation} ON audit", "the audit log is append-only")
_forbid(bindings, "no_delete", "DELETE ON bindings", "bindings are kept")
_forbid(
    bindings,
    "no_update",
    "UPDATE ON bindings WHEN OLD.released_at IS NOT NULL OR NEW.released_at IS NULL "
    "OR (OLD.id, OLD.device, OLD.ek_hash, OLD.bound_at) IS NOT (NEW.id, NEW.device, NEW.ek_hash, NEW.bound_at)",
    "a binding can only be released",
)
