"""The store: transactions between threads and processes, the append-only log, tokens used once, versions."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from support.authority import NOW, make_csr, make_token, new_key
from tpm_mtls.errors import StateError, StorageError, StorageFullError, UsageError
from tpm_mtls_pki import audit, records, tokens
from tpm_mtls_pki.database import Database, database_url, sqlite_url
from tpm_mtls_pki.issuance import Credentials, Issued
from tpm_mtls_pki.policy import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from tpm_mtls_pki.authority import Authority
    from tpm_mtls_pki.issuance import Registrar


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path / "x.sqlite"))
    opened.create("a" * 64)
    yield opened
    opened.close()


def test_a_transaction_happens_wholly_or_not_at_all(database: Database) -> None:
    with pytest.raises(KeyError), database.writing() as connection:
        _make_and_fail(connection)
    with database.reading() as connection:
        assert tokens.listing(connection) == []
        assert list(audit.entries(connection)) == []


def _make_and_fail(connection: Connection) -> None:
    tokens.create(connection, "dev", ttl=timedelta(1), now=NOW)
    raise KeyError


def test_sqlite_is_set_up_to_be_durable(database: Database) -> None:
    with database.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_writers_wait_in_a_line(database: Database) -> None:
    """Each reads the log's end and then writes: none may come between."""

    def work() -> None:
        for _ in range(10):
            with database.writing() as connection:
                audit.append(connection, "e", "s", {}, now=NOW)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert audit.verify(connection)[0] == 40


def test_a_store_is_made_once_and_belongs_to_one_ca(database: Database, tmp_path: Path) -> None:
    database.check("a" * 64)
    with pytest.raises(StateError, match="another CA's store"):
        database.check("b" * 64)
    with pytest.raises(StateError, match="holds a CA's store already"):
        database.create("b" * 64)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE store SET version = 99")
    with pytest.raises(StateError, match="has version 99, expected 2"):
        database.check("a" * 64)
    empty = Database(sqlite_url(tmp_path / "empty.sqlite"))
    with pytest.raises(StateError, match="holds no CA's store"):
        empty.check("a" * 64)
    empty.close()


def test_errors_of_the_database_are_ours(tmp_path: Path) -> None:
    nowhere = Database(sqlite_url(tmp_path / "none" / "x.sqlite"))
    with pytest.raises(StorageError, match="unable to open database file"):
        nowhere.check("a" * 64)
    (tmp_path / "junk").write_bytes(b"no database at all" * 100)
    junk = Database(sqlite_url(tmp_path / "junk"))
    with pytest.raises(StorageError, match="file is not a database"):
        junk.check("a" * 64)
    junk.close()


def test_a_full_disk_is_told(database: Database) -> None:
    with database.writing() as connection:  # the setting is the pooled connection's, which the next block gets too
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFullError, match="is full"), database.writing() as connection:
        audit.append(connection, "e", "s", {"x": "y" * 20_000}, now=NOW)


@pytest.mark.parametrize(
    ("text", "message"),
    [("nonsense", "not a database URL"), ("postgresql://u:secret@h/d", "with a password is not kept")],
)
def test_database_urls_are_checked(text: str, message: str) -> None:
    assert database_url("postgresql+psycopg://pki@/pki").database == "pki"
    with pytest.raises(UsageError, match=message) as caught:
        database_url(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql+asyncpg://h/d", "nosuch://h/d"])
def test_a_missing_driver_is_named(url: str) -> None:
    with pytest.raises(UsageError, match="cannot use the database"):
        Database(sqlalchemy.make_url(url))


def test_the_sql_is_portable() -> None:
    """It compiles for PostgreSQL; the triggers are SQLite's own."""
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    from tpm_mtls_pki import schema

    for table in schema.metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("statement", ["UPDATE audit SET subject = 'x'", "DELETE FROM audit"])
def test_the_audit_log_is_append_only(authority: Authority, statement: str) -> None:
    with pytest.raises(StorageError, match="append-only"), authority.database.writing() as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET detail = '{}' WHERE id = 1",
        "UPDATE audit SET at = at + 1 WHERE id = 2",
        "DELETE FROM audit WHERE id = 2",
        "DELETE FROM audit WHERE id = 1",
        "UPDATE audit SET id = 9 WHERE id = 3",
    ],
)
def test_tampering_with_the_audit_log_shows(authority: Authority, statement: str) -> None:
    with authority.database.reading() as connection:
        assert audit.verify(connection)[0] == 3
    with authority.database.writing() as connection:
        for name in ("update", "delete"):
            connection.exec_driver_sql(f"DROP TRIGGER audit_no_{name}")
        connection.exec_driver_sql(statement)
    with pytest.raises(StateError, match="audit log was changed"), authority.database.reading() as connection:
        audit.verify(connection)


def test_a_token_is_kept_as_its_digest(registrar: Registrar) -> None:
    token = make_token(registrar, "dev")
    assert len(token) == 43  # 32 bytes
    registrar.authority.database.close()
    for file in registrar.authority.folder.iterdir():
        if file.is_file():
            assert token.encode() not in file.read_bytes()


def test_a_token_has_a_state(registrar: Registrar) -> None:
    database = registrar.authority.database
    make_token(registrar, "dev", ttl=timedelta(hours=1))
    with database.writing() as connection:
        (token,) = tokens.listing(connection)
        assert token.state(NOW) == "open"
        assert token.state(NOW + timedelta(hours=1)) == "expired"
        tokens.revoke(connection, token.id, now=NOW)
        (revoked,) = tokens.listing(connection)
        assert revoked.state(NOW) == "revoked"
        assert not tokens.claim(connection, token, key_digest="k", now=NOW)
    for number in (token.id, 99):
        with pytest.raises(StateError, match=f"no unused token {number}"), database.writing() as connection:
            tokens.revoke(connection, number, now=NOW)


def test_a_token_taken_meanwhile_is_refused(registrar: Registrar) -> None:
    """The decision was made on an older state: the claim itself decides."""
    from tpm_mtls_pki.csr import check_csr
    from tpm_mtls_pki.policy import Permit

    make_token(registrar, "dev")
    with registrar.authority.database.writing() as connection:
        (token,) = tokens.listing(connection)
        assert tokens.claim(connection, token, key_digest="k", now=NOW)
        assert tokens.listing(connection)[0].state(NOW) == "used"
        outcome = registrar._decide(connection, Permit("dev", "token 1", token), check_csr(make_csr(new_key())), None)
    assert outcome == Refusal(Reason.TOKEN_USED, "dev")


def test_a_token_that_ends_meanwhile_is_refused(registrar: Registrar) -> None:
    """While the CSR was checked: the transaction that issues looks again."""
    token = make_token(registrar, "dev", ttl=timedelta(hours=1))
    times = [NOW, NOW + timedelta(hours=2)]
    late = dataclasses.replace(registrar, clock=lambda: times.pop(0))
    outcome = late.enroll(Credentials("dev", token, None), make_csr(new_key()), renewal=False)
    assert outcome == Refusal(Reason.TOKEN_EXPIRED, "dev")


_RACER = """
import sys
from pathlib import Path
from support.authority import PASSPHRASE, make_csr, new_key
from tpm_mtls_pki.authority import open_authority
from tpm_mtls_pki.clock import utc_now
from tpm_mtls_pki.issuance import Credentials, Issued, Registrar

with open_authority(Path(sys.argv[1])) as authority:
    registrar = Registrar(authority, authority.unlock(PASSPHRASE), utc_now)
    csr = make_csr(new_key())
    print("ready", flush=True)
    token = sys.stdin.readline().strip()
    outcome = registrar.enroll(Credentials("dev", token, None), csr, renewal=False)
    print("issued" if isinstance(outcome, Issued) else outcome.reason.value)
"""


def test_of_processes_with_one_token_one_gets_a_certificate(ca_dir: Path, registrar: Registrar) -> None:
    import support

    path = next(iter(support.__path__)).removesuffix("/support")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{_RACER}", str(ca_dir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    racers = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    token = make_token(registrar, "dev", ttl=timedelta(hours=5))
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write(f"{token}\n")
        racer.stdin.flush()
    outcomes = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert outcomes == ["issued", "token-used", "token-used"]
    with registrar.authority.database.reading() as connection:
        assert len(records.listing(connection)) == 1
        assert audit.verify(connection)


def test_a_failed_issuance_leaves_no_trace(registrar: Registrar) -> None:
    """Signed but not stored is not issued: the token stays usable, and the log has nothing."""
    token = make_token(registrar, "dev")
    database, credentials = registrar.authority.database, Credentials("dev", token, None)
    with database.writing() as connection:
        before = audit.verify(connection)
        connection.exec_driver_sql(
            "CREATE TRIGGER broken BEFORE INSERT ON certificates BEGIN SELECT RAISE(ABORT, 'disk fell off'); END"
        )
    with pytest.raises(StorageError, match="disk fell off"):
        registrar.enroll(credentials, make_csr(new_key()), renewal=False)
    with database.writing() as connection:
        assert audit.verify(connection) == before
        connection.exec_driver_sql("DROP TRIGGER broken")
    assert isinstance(registrar.enroll(credentials, make_csr(new_key()), renewal=False), Issued)


def test_credentials_hide_their_password() -> None:
    assert "hunter2" not in repr(Credentials("dev", "hunter2", None))


@pytest.mark.parametrize("text", ["0A:0b", "0x0a0b", "a0b", "0" * 36 + "0a0b"])
def test_serial_numbers_are_read_as_people_paste_them(text: str) -> None:
    assert records.parse_serial(text) == "0a0b".rjust(40, "0")


@pytest.mark.parametrize("text", ["", "xyz", "0", "-1", "f" * 41])
def test_other_texts_are_no_serial_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="not a serial number"):
        records.parse_serial(text)
