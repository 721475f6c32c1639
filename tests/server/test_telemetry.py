"""Messages: read strictly, kept durably, at most so many per device."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import StorageError, StorageFullError, UsageError
from tpm_mtls_server.database import Database
from tpm_mtls_server.telemetry import TelemetryStore, read_message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 11, 22, 12, 0, 1, 500, tzinfo=UTC)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_an_object_stays_what_it_is(message: dict[str, object]) -> None:
    assert json.loads(read_message(json.dumps(message).encode())) == message


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_a_value_error(body: bytes) -> None:
    try:
        text = read_message(body)
    except ValueError:
        return
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":1e999}', "not a JSON object"),
        (b'{"a":"\\ud800"}', "not JSON"),
        (b'{"a":"\xff"}', "not JSON"),
        (b"{}{}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":' + b"[" * 60_000, "nested too deeply"),
    ],
)
def test_what_readers_do_not_agree_on_is_refused(body: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=f"^{match}$"):
        read_message(body)


def test_a_name_that_occurs_twice_is_stored_once() -> None:
    assert read_message(b'{"a":1, "a":2}') == '{"a":2}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "telemetry.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> TelemetryStore:
    return TelemetryStore(database, kept_per_device=3)


def test_messages_come_back_by_device_in_order(store: TelemetryStore) -> None:
    assert store.add("a", '{"n":1}', received=NOW) == 1
    assert store.add("b", '{"n":2}', received=NOW) == 2
    assert store.add("a", '{"n":3}', received=NOW) == 3
    assert [(message.number, message.device, message.text) for message in store.messages("a")] == [
        (1, "a", '{"n":1}'),
        (3, "a", '{"n":3}'),
    ]
    assert store.messages("a")[0].received == NOW
    assert store.messages("c") == []


def test_only_the_newest_of_a_device_are_kept_and_no_id_is_given_twice(store: TelemetryStore) -> None:
    store.add("b", "{}", received=NOW)
    assert [store.add("a", "{}", received=NOW) for _ in range(5)] == [2, 3, 4, 5, 6]
    assert [message.number for message in store.messages("a")] == [4, 5, 6]
    assert [message.number for message in store.messages("b")] == [1]


def test_a_closed_store_can_be_opened_again(store: TelemetryStore, database: Database, path: Path) -> None:
    store.add("a", "{}", received=NOW)
    database.close()
    again = Database(f"sqlite:///{path}")
    assert len(TelemetryStore(again).messages("a")) == 1
    again.check()
    again.close()


def test_the_files_are_private(store: TelemetryStore, path: Path) -> None:
    old = os.umask(0)
    try:
        store.add("a", "{}", received=NOW)
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(old)


def test_another_program_can_read_it(store: TelemetryStore, path: Path) -> None:
    store.add("a", '{"n":1}', received=NOW)
    told = subprocess.run(
        [sys.executable, "-m", "sqlite3", str(path), "select * from telemetry"],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode == 0:  # CPython 3.12 and later have this command
        assert '{"n":1}' in told.stdout
    connection = sqlite3.connect(path)
    assert connection.execute("select device, message from telemetry").fetchall() == [("a", '{"n":1}')]
    connection.close()


def test_threads_write_at_the_same_time(database: Database) -> None:
    store = TelemetryStore(database)
    with ThreadPoolExecutor(16) as threads:
        numbers = list(threads.map(lambda number: store.add(f"d{number % 4}", "{}", received=NOW), range(64)))
    assert sorted(numbers) == list(range(1, 65))


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("telemetry.db", "no database URL"),
        ("sqlite://", "not kept in memory only"),
        ("sqlite:///:memory:", "not kept in memory only"),
        ("postgresql://user:geheim@127.0.0.1/x", "has a password in it"),
        ("nonsense://127.0.0.1/x", "no driver for nonsense is installed"),
        ("oracle://127.0.0.1/x", "no driver for oracle"),
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(url: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        Database(url)
    assert "geheim" not in str(caught.value) + caught.value.hint


def test_what_is_no_database_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"my notes " * 100)
    with pytest.raises(StorageError, match=r"cannot open the database .*notes\.txt: file is not a database"):
        Database(f"sqlite:///{path}")
    assert path.read_bytes() == b"my notes " * 100


def test_a_folder_that_cannot_be_written_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="cannot make /proc/nothing"):
        Database("sqlite:////proc/nothing/telemetry.db")
    with pytest.raises(StorageError, match=r"cannot (open the database|write) /proc/version: "):
        Database("sqlite:////proc/version")


def test_a_full_disk_is_told_and_leaves_the_old_messages(store: TelemetryStore, database: Database) -> None:
    store.add("a", "{}", received=NOW)
    with database._engine.connect() as connection:
        pages = connection.exec_driver_sql("pragma page_count").scalar_one()
        connection.exec_driver_sql(f"pragma max_page_count = {pages}")
    with pytest.raises(StorageFullError, match="database or disk is full"):
        store.add("a", json.dumps({"a": "x" * 60_000}), received=NOW)
    assert [message.text for message in store.messages("a")] == ["{}"]
    database.check()
