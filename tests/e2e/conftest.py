"""For tests that run whole programs, dozens of them each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def _programs_are_not_measured() -> Iterator[None]:
    """Coverage takes each of them longer to begin than their own work; what they run is measured by other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield
