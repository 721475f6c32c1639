"""For tests that run the tutorial's pages: dozens of whole programs each."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from support.installed import once
from support.tutorial import Reader, newcomer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with a short name: the path of an agent's socket has at most 107 bytes."""
    return tmp_path_factory.mktemp("you")


@pytest.fixture
def reader(home: Path) -> Iterator[Reader]:
    """A new reader, who has made the tutorial's folder."""
    reader = newcomer(home)
    try:
        yield reader
    finally:
        reader.finish()


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory, _programs_are_not_measured: None) -> Path:
    """What a reader of page 7 has at home before the first device: a CA and a backend, and no process."""

    def found(home: Path) -> None:
        reader = newcomer(home)
        reader.follow("07-manufacturing", until="Two boards")
        _rewrite(home, reader.as_on_the_page)

    return once(tmp_path_factory, "company", found)


@pytest.fixture
def fleet_reader(company: Path, home: Path) -> Iterator[Reader]:
    """A reader who has come as far as that."""
    reader = Reader(shutil.copytree(company, home, symlinks=True, dirs_exist_ok=True))
    _rewrite(reader.home, reader.typed)
    try:
        yield reader
    finally:
        reader.finish()


def _rewrite(home: Path, change: Callable[[str], str]) -> None:
    """The ports in the script that starts the servers are each reader's own."""
    script = home / "tpm-tutorial" / "page-7" / "company.sh"
    script.write_text(change(script.read_text()))
