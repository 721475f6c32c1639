"""The registry's tables: made once, of one version, with an audit log that only grows."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from tpm_mtls.errors import StateError, StorageError
from tpm_mtls_server.database import Database
from tpm_mtls_server.registry import Registry, schema

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
BY = "alice@example.com"


def test_a_registry_of_another_version_is_refused(database: Database, url: str) -> None:
    with database.writing() as connection:
        connection.execute(schema.version.update().values(version=99))
    with (
        pytest.raises(StateError, match=r"the registry in .*server\.db has version 99, expected 1"),
        Registry.open(url),
    ):
        pass


def test_four_processes_make_one_registry(tmp_path: Path) -> None:
    program = (
        "import sys; from datetime import UTC, datetime; from tpm_mtls_server.registry import Registry\n"
        "with Registry.open(sys.argv[1]) as registry:\n"
        "    registry.groups.define('g' + sys.argv[2], by='x', now=datetime.now(UTC))\n"
    )
    url = f"sqlite:///{tmp_path}/new.db"
    started = [subprocess.Popen([sys.executable, "-c", program, url, str(number)]) for number in range(4)]
    assert [process.wait(30) for process in started] == [0] * 4
    with Registry.open(url) as registry:
        assert [group.name for group in registry.groups.all()] == ["default", "g0", "g1", "g2", "g3"]


@pytest.mark.parametrize("statement", ["UPDATE registry_audit SET actor = 'x'", "DELETE FROM registry_audit"])
def test_the_audit_log_only_grows(registry: Registry, database: Database, statement: str) -> None:
    registry.groups.define("fleet", by=BY, now=NOW)
    with pytest.raises(StorageError, match="the audit log is append-only"), database.writing() as connection:
        connection.exec_driver_sql(statement)
    assert [row.actor for row in registry.audit("group:fleet")] == [BY]


def test_everything_of_a_transaction_happens_or_nothing(registry: Registry, database: Database) -> None:
    row = {"name": "half", "mode": "learn", "pcrs": "[]", "revision": 0}
    with pytest.raises(StorageError, match="unique"), database.writing() as connection:
        connection.execute(schema.groups.insert().values([row, row]))
    assert [group.name for group in registry.groups.all()] == ["default"]


def test_what_refers_to_nothing_is_refused(database: Database) -> None:
    with pytest.raises(StorageError, match="foreign key"), database.writing() as connection:
        connection.execute(schema.nonces.insert().values(nonce="00" * 32, device="nobody", expires_at=0))


def test_postgresql_would_take_the_tables() -> None:
    """They compile for PostgreSQL; the triggers are SQLite's own."""
    for table in schema.metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


def test_the_databases_of_two_engines_see_each_other(registry: Registry, url: str) -> None:
    with Registry.open(url) as other:
        other.groups.define("fleet", by=BY, now=NOW)
    assert [group.name for group in registry.groups.all()] == ["default", "fleet"]


def test_a_reader_is_not_stopped_by_a_writer(registry: Registry, url: str) -> None:
    other = Database(url)
    with other.writing() as connection:
        connection.execute(sqlalchemy.text("UPDATE groups SET revision = 7"))
        assert registry.groups.all()[0].revision == 0
    other.close()
    assert registry.groups.all()[0].revision == 7
