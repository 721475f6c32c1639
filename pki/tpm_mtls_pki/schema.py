"""The store's tables. Times are seconds since 1970 UTC, serial numbers and digests lower-case hex."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

VERSION: Final = 1
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

for _operation in ("UPDATE", "DELETE"):
    event.listen(
        audit,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there
            f"CREATE TRIGGER audit_no_{_operation.lower()} BEFORE {_operation} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
