"""Every link of a page leads somewhere, and every page can be found from docs/README.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from support.named_commands import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(page: Path) -> Iterator[tuple[str, str]]:
    """File and heading of the links within the project; either may be empty."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in _LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            file, _, heading = target.partition("#")
            yield file, heading


def headings(page: Path) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    plain = [re.sub(r"[`*\\]", "", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for file, heading in links(page):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{file}: no such file"
        if heading and target.suffix == ".md":
            assert heading in headings(target), f"{file}#{heading}: no such heading"


def test_every_page_can_be_found() -> None:
    index = ROOT / "docs" / "README.md"
    found, todo = set(), [index]
    while todo:
        page = todo.pop()
        if page in found or not page.exists():
            continue
        found.add(page)
        for file, _ in links(page):
            target = (page.parent / file).resolve()
            if target.is_dir():
                todo += sorted(target.glob("*.md"))
            elif target.suffix == ".md":
                todo.append(target)
    assert {_name(page) for page in PAGES} - {_name(page) for page in found} == set()


def test_the_index_names_every_page_for_people() -> None:
    named = {(ROOT / "docs" / file).resolve() for file, _ in links(ROOT / "docs" / "README.md")}
    pages = {
        page
        for page in PAGES
        if page.parent.name in {"docs", "how-to", "decisions"} and page != ROOT / "docs" / "README.md"
    }
    assert {_name(page) for page in pages - named} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=_name)
def test_from_every_page_one_comes_back_to_the_index(page: Path) -> None:
    index = ROOT / "docs" / "README.md"
    seen, todo = set(), [page]
    while todo and index not in seen:
        here = todo.pop(0)
        seen.add(here)
        targets = ((here.parent / file).resolve() for file, _ in links(here) if file)
        todo += [target for target in targets if target in PAGES and target not in seen]
    assert index in seen, "a dead end"
