"""What the tests of ``tpm-mtls provision`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.hardening import Hardening

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture
def provision(tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Hardening:
    return Hardening(tpm, tmp_path, capsys)
