"""SQLite as the CA's and the backend's stores use it: several processes at a time, and nothing lost at a power cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine


def line_up_writers(engine: Engine) -> Engine:
    """Returns the SQLite ``engine``: its transactions now take the lock when they begin, but for a `reader`'s."""
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def reader(engine: Engine) -> Engine:
    """``engine`` for transactions that only read, and wait for no writer; other databases need no such word."""
    return engine.execution_options(tpm_mtls_reads=True)


def _prepare(connection: Any, _: object) -> None:  # noqa: ANN401 - the driver's connection
    connection.isolation_level = None  # the driver would begin transactions only before writes
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Writers take SQLite's lock at once: one who reads first and then writes would fail when another came between."""
    reads = connection.get_execution_options().get("tpm_mtls_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
