"""Pages name modules, functions and files that exist."""

from __future__ import annotations

import ast
import importlib
import re
from typing import TYPE_CHECKING

import pytest

from support.named_commands import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
API = ROOT / "docs" / "reference" / "api.md"
_FOLDERS = (
    *("core", "keygen", "client", "server", "pki", "relay", "agent", "simulator"),
    *("tests", "docs", "packaging", "scripts", "examples"),
)
_PATH = re.compile(rf"`((?:{'|'.join(_FOLDERS)})/[\w./-]*)`")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(page: Path) -> list[tuple[str, str]]:
    """What an example, or the Python blocks of ``page``, import from our packages."""
    found = []
    text = page.read_text()
    blocks = [text] if page.suffix == ".py" else re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        lines = [line.strip() for line in block.splitlines() if re.match(r" *(from|import) tpm_mtls", line)]
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, ast.ImportFrom):
                found += [(str(node.module), each.name) for each in node.names]
            elif isinstance(node, ast.Import):
                found += [(each.name, "") for each in node.names]
    return found


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_names_only_files_that_exist(page: Path) -> None:
    assert [path for path in _PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


def test_what_pages_and_examples_import_exists_and_is_promised() -> None:
    examples = sorted((ROOT / "examples").rglob("*.py"))
    imports = {(page, *each) for page in [*PAGES, *examples] for each in _imports(page)}
    assert len(imports) > 20
    promised = set(_imports(API))
    for page, module, name in sorted(imports):
        imported = importlib.import_module(module)
        assert not name or hasattr(imported, name), f"{_name(page)}: {module}.{name}"
        is_error = module == "tpm_mtls.errors"
        assert (module, name) in promised or is_error, f"{_name(page)}: {module}.{name} is not on the API page"
