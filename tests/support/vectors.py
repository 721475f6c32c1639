"""Recorded data of other projects, in ``../shared/vectors`` beside this folder; read from there, never copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[2] / ".." / "shared" / "vectors"


def vector(name: str) -> bytes:
    """The content of a vector; without it the test is skipped, and in CI it fails."""
    path = VECTORS / name
    if not path.is_file():
        reason = f"the recorded data ../shared/vectors/{name} is absent"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path.read_bytes()
