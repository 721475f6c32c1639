"""For tests that run the tutorial's pages: dozens of whole programs each."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from support.installed import once
from support.tutorial import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A new reader, at home in an empty folder."""
    reader = Reader(tmp_path / "home")
    try:
        yield reader
    finally:
        reader.finish()


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory, _programs_are_not_measured: None) -> Path:
    """What a reader of page 7 has at home before the first device: a CA and a backend, and no process."""

    def found(home: Path) -> None:
        reader = Reader(home)
        reader.follow("07-manufacturing", until="Two boards")
        _rewrite(home, reader.as_on_the_page)

    return once(tmp_path_factory, "company", found)


@pytest.fixture
def fleet_reader(company: Path, tmp_path: Path) -> Iterator[Reader]:
    """A reader who has come as far as that."""
    reader = Reader(shutil.copytree(company, tmp_path / "home"))
    _rewrite(reader.home, reader.typed)
    try:
        yield reader
    finally:
        reader.finish()


def _rewrite(home: Path, change: Callable[[str], str]) -> None:
    """The ports in the script that starts the servers are each reader's own."""
    script = home / "tpm-tutorial" / "fleet" / "up.sh"
    script.write_text(change(script.read_text()))
