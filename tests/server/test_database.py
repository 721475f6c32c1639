"""The server's database: opened with care, written by one at a time. What it holds has tests of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from support.other_user import give, needs_root, not_given
from tpm_mtls.errors import StorageError
from tpm_mtls_server.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/server.db")
    with database.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE counter (n INTEGER)")
        connection.exec_driver_sql("INSERT INTO counter VALUES (0)")
    yield database
    database.close()


def increment(database: Database) -> None:
    with database.writing() as connection:
        found = connection.exec_driver_sql("SELECT n FROM counter").scalar_one()
        connection.exec_driver_sql("UPDATE counter SET n = ?", (found + 1,))


def value(database: Database) -> int:
    with database.reading() as connection:
        found: int = connection.exec_driver_sql("SELECT n FROM counter").scalar_one()
        return found


def test_who_reads_and_then_writes_loses_nothing(database: Database, tmp_path: Path) -> None:
    other = Database(f"sqlite:///{tmp_path}/server.db")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: increment((database, other)[number % 2]), range(64)))
    assert value(database) == value(other) == 64
    other.close()


@needs_root
def test_what_root_makes_in_the_servers_folder_is_the_servers(tmp_path: Path) -> None:
    """SQLite's journal and shared memory, too, while it is open."""
    folder = give(tmp_path / "server")
    database = Database(f"sqlite:///{folder}/below/server.db")
    with database.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE counter (n INTEGER)")
    assert len(list((folder / "below").iterdir())) == 3
    assert not not_given(folder)
    database.close()


def spoil(database: Database) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE counter SET n = 7")
        connection.exec_driver_sql("UPDATE missing SET n = 7")


def test_a_failure_leaves_nothing(database: Database) -> None:
    with pytest.raises(StorageError, match="no such table: missing"):
        spoil(database)
    assert value(database) == 0


def test_a_writer_that_waits_too_long_is_told(database: Database, tmp_path: Path) -> None:
    other = Database(f"sqlite:///{tmp_path}/server.db")
    sqlalchemy.event.listen(
        other._engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 50")
    )
    other.close()
    with database.writing():
        with pytest.raises(StorageError, match="database is locked"):
            increment(other)
        assert value(other) == 0, "readers do not wait"
    increment(other)
    other.close()


def test_postgresql_that_is_not_there_or_has_no_driver_is_told(tmp_path: Path) -> None:
    from tpm_mtls.errors import TpmMtlsError

    with pytest.raises(TpmMtlsError, match=r"no driver for postgresql\+psycopg is installed|cannot open the database"):
        Database(f"postgresql+psycopg://pki@/nothing?host={tmp_path}")
