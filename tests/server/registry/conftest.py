"""A registry in a database, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tpm_mtls_server.database import Database
from tpm_mtls_server.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/server.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


@pytest.fixture(autouse=True)
def _prepared(registry: Registry) -> None:
    """The tables are there."""
    assert registry.groups.all()
