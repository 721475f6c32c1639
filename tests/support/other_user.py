"""Another user's folder, in which root works by hand: what is in it afterwards must be that user's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

OTHER = 12345
"""User and group; nobody has that number."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in another user's folder")


def give(folder: Path) -> Path:
    """``folder``, made if it is not there, with all that is in it, is `OTHER`'s."""
    folder.mkdir(mode=0o750, exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OTHER, OTHER)
    return folder


def not_given(folder: Path) -> list[Path]:
    """``folder``, and what is below it, as far as it is not `OTHER`'s."""
    found = [(path, path.lstat()) for path in (folder, *folder.rglob("*"))]
    return [path for path, status in found if (status.st_uid, status.st_gid) != (OTHER, OTHER)]
