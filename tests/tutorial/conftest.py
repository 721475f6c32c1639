"""For tests that run the tutorial's pages: dozens of whole programs each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tutorial import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _programs_are_not_measured() -> Iterator[None]:
    """Coverage takes each of them longer to begin than their own work; what they run is measured by other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A new reader, at home in an empty folder."""
    reader = Reader(tmp_path / "home")
    try:
        yield reader
    finally:
        reader.finish()
