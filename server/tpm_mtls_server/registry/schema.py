"""The registry's tables. Times are seconds since 1970 UTC; Names, digests and serial numbers lower-case hex."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy
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
    event,
)

from tpm_mtls.errors import StateError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from tpm_mtls_server.database import Database

VERSION: Final = 1
"""Raised with every change of a table; a registry of another version is refused, not guessed at."""

DEFAULT_GROUP: Final = "default"
"""The group of a device that nobody has put into another one; it learns."""

DEVICE_LENGTH: Final = 253  # a host name: RFC 1035, 2.3.4
_HASH = String(64)
_NAME = String(132)  # nameAlg and digest of a public area, hex

metadata = MetaData()

version: Final = Table(
    "registry",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
)

groups: Final = Table(
    "groups",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("mode", String(8), nullable=False),  # learn, approve, values, signed
    Column("pcrs", Text, nullable=False),  # JSON array of numbers; the empty one for all that are signed
    Column("revision", Integer, nullable=False),  # grows with every change of what its devices are held against
)

devices: Final = Table(
    "devices",
    metadata,
    Column("name", String(DEVICE_LENGTH), primary_key=True),
    Column("group_name", String(32), ForeignKey("groups.name"), nullable=False, index=True),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),
    Column("serial", String(40), nullable=False),  # of the certificate that it showed last
    Column("not_after", BigInteger, nullable=False),
    Column("certificate", LargeBinary, nullable=False),  # that one, DER
    Column("tpm", _HASH),  # SHA-256 of the EK's public key; none where no TPM was proved
    Column("endorsement_key", LargeBinary),  # its TPMT_PUBLIC, as a genuine quote had it
    Column("refused_tpm", String(64)),  # what a refused certificate named instead; empty for none at all
    Column("refused_at", BigInteger),
    Column("quarantined_at", BigInteger),
    Column("quarantine_reason", Text),
    Column("revision", Integer, nullable=False),  # grows with every change that a quote is judged by, or makes
    Column("wanted", Boolean, nullable=False),  # somebody wants a quote now
    Column("judged_at", BigInteger),  # the standing verdict
    Column("trusted", Boolean),
    Column("check", Integer),
    Column("pending", Boolean),  # not trusted, but only because an operator has not approved it
    Column("reason", Text),
    Column("trusted_at", BigInteger),
    Column("trusted_until", BigInteger),
    Column("clock", Text),  # JSON: attestation key and clock of the last genuine quote
    Column("noted_state", String(32)),  # the state that the audit log tells
    Column("noted_at", BigInteger),  # when the changes that it told are forgotten (`attestations.NOTED_EVERY`)
    Column("health_at", BigInteger),
    Column("health", Text),  # JSON: the last report
)


def _device(*, primary_key: bool = False, index: bool = False) -> Column[str]:
    return Column(
        "device",
        String(DEVICE_LENGTH),
        ForeignKey("devices.name", ondelete="CASCADE"),
        primary_key=primary_key,
        index=index,
        nullable=False,
    )


nonces: Final = Table(
    "nonces",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("nonce", _HASH, nullable=False, unique=True),
    _device(index=True),
    Column("expires_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

quotes: Final = Table(
    "quotes",
    metadata,
    Column("id", Integer, primary_key=True),
    _device(),
    Column("at", BigInteger, nullable=False),
    Column("trusted", Boolean, nullable=False),
    Column("check", Integer),
    Column("state", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("differences", Text, nullable=False),  # JSON array
    Column("attestation_key", _NAME, nullable=False),  # as the device says; empty if unreadable
    Column("attest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("pcrs", Text, nullable=False),  # JSON object: bank, number, hex
    Index("quotes_by_device", "device", "id"),
    sqlite_autoincrement=True,
)

# what the last quote that only the policy could refuse showed: what an operator approves
observations: Final = Table(
    "observations",
    metadata,
    _device(primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("pcrs", Text, nullable=False),
    Column("event_log", LargeBinary),  # zlib
)

baselines: Final = Table(
    "baselines",
    metadata,
    _device(primary_key=True),
    Column("at", BigInteger, nullable=False),  # of the quote that showed it
    Column("accepted_at", BigInteger, nullable=False),
    Column("accepted_by", String(128), nullable=False),  # an operator; empty for a learned one
    Column("pcrs", Text, nullable=False),
    Column("event_log", LargeBinary),  # zlib
)

# "references" is a word of SQL
reference_values: Final = Table(
    "reference_values",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("group_name", String(32), ForeignKey("groups.name", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", String(8), nullable=False),  # values, signed, signer
    Column("digest", _HASH, nullable=False),
    Column("content", Text, nullable=False),
    Column("added_at", BigInteger, nullable=False),
    Column("added_by", String(128), nullable=False),
    sqlite_autoincrement=True,
)

attestation_keys: Final = Table(
    "attestation_keys",
    metadata,
    Column("name", _NAME, primary_key=True),  # the operator's word that this key is the device's
    Column("device", String(DEVICE_LENGTH), nullable=False, index=True),
    Column("added_at", BigInteger, nullable=False),
    Column("added_by", String(128), nullable=False),
)

audit: Final = Table(
    "registry_audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("event", String(32), nullable=False),
    Column("subject", String(DEVICE_LENGTH), nullable=False),  # a device, or group:NAME
    Column("actor", String(128), nullable=False),  # an operator; empty for the server itself
    Column("detail", Text, nullable=False),  # JSON object
    Index("registry_audit_by_subject", "subject", "id"),
    sqlite_autoincrement=True,
)

for _operation in ("UPDATE", "DELETE"):
    event.listen(
        audit,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there
            f"CREATE TRIGGER registry_audit_no_{_operation.lower()} BEFORE {_operation} ON registry_audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )


def prepare(database: Database) -> None:
    """Makes the registry's tables in ``database`` if they are not there.

    Raises:
        StateError: they are there in another version.
        StorageError: the database refuses.
    """
    with database.reading() as connection:
        found = _version(connection)
    if found is None:
        with database.writing() as connection:
            found = _version(connection)  # another process may have been faster
            if found is None:
                _create(connection)
                found = VERSION
    if found != VERSION:
        raise StateError(
            f"the registry in {database.name} has version {found}, expected {VERSION}",
            hint="use the tpm-mtls that made it, or another database",
        )


def _version(connection: Connection) -> int | None:
    if not sqlalchemy.inspect(connection).has_table(version.name):
        return None
    return connection.execute(sqlalchemy.select(version.c.version)).scalar_one_or_none()


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.execute(version.insert().values(id=1, version=VERSION))
    connection.execute(groups.insert().values(name=DEFAULT_GROUP, mode="learn", pcrs="[]", revision=0))
