"""docs/diagrams/*.svg are the pictures of the texts beside them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "docs" / "diagrams"
SOURCES = sorted(FOLDER.glob("*.dot"))


def words(svg: Path) -> list[str]:
    """What is written in a picture; where it stands depends on the machine's fonts."""
    root = ET.fromstring(svg.read_text())  # noqa: S314 - our own file
    return sorted("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_picture_is_that_of_its_text(source: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert digest in source.with_suffix(".svg").read_text(), "run scripts/diagrams.sh"


def test_every_picture_has_a_text_and_is_shown() -> None:
    assert [picture.stem for picture in sorted(FOLDER.glob("*.svg"))] == [source.stem for source in SOURCES]
    pages = "".join(page.read_text() for page in (PROJECT / "docs").rglob("*.md"))
    shown = set(re.findall(r"!\[[^\]]+\]\([^)]*diagrams/([a-z-]+)\.svg\)", pages))
    assert shown == {source.stem for source in SOURCES}, "each with words for those who do not see it"


def test_the_script_draws_what_is_there(tmp_path: Path) -> None:
    copy = tmp_path / "docs" / "diagrams"
    copy.mkdir(parents=True)
    for source in SOURCES:
        shutil.copy(source, copy)
    (tmp_path / "scripts").mkdir()
    shutil.copy(PROJECT / "scripts" / "diagrams.sh", tmp_path / "scripts")
    subprocess.run([tmp_path / "scripts" / "diagrams.sh"], check=True, timeout=60)
    for source in SOURCES:
        drawn = copy / f"{source.stem}.svg"
        assert words(drawn) == words(source.with_suffix(".svg"))
        assert hashlib.sha256(source.read_bytes()).hexdigest() in drawn.read_text()
