"""The reference pages and the manual pages say what the program says."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
MANUALS = sorted((ROOT / "packaging" / "man").iterdir())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a module of ``scripts``."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


def test_every_page_is_what_the_program_says(script: Callable[[str], Any]) -> None:
    reference = script("reference")
    assert reference.outdated(reference.pages(), ROOT) == [], "run scripts/reference.py"


def test_a_page_that_differs_is_missing_or_stale_is_named(script: Callable[[str], Any], tmp_path: Path) -> None:
    reference = script("reference")
    folder = tmp_path / "packaging" / "man"
    folder.mkdir(parents=True)
    for name in ("same.1", "other.1", "old.1"):
        (folder / name).write_text("text\n")
    made = {f"packaging/man/{name}": "text\n" for name in ("same.1", "new.1")} | {"packaging/man/other.1": "another\n"}
    assert reference.outdated(made, tmp_path) == [f"packaging/man/{name}.1" for name in ("new", "old", "other")]


def test_the_program_itself_checks() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_command_has_a_section_and_every_option_is_in_it(script: Callable[[str], Any]) -> None:
    commands = [command for command in script("reference_cli").command_line().walk() if not command.commands]
    for command in commands:
        page = (ROOT / "docs" / "reference" / "commands" / f"{command.path[1]}.md").read_text()
        section = page.partition(f"# {command.name}\n")[2].partition("\n## ")[0]
        for option in command.options:
            assert f"- `{option.names}`" in section, command.name
        assert "--help" in section


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.name)
def test_groff_takes_the_manual_without_a_warning(manual: Path) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Kutf8", "-Tutf8", "-ww", "-P-c", manual], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(r".\x08", "", done.stdout)
    assert "NAME" in shown
    assert f"{manual.stem} - " in shown.replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-")


def test_the_manuals_keep_what_is_typed_as_it_is_typed(script: Callable[[str], Any]) -> None:
    """Without care groff makes typographic characters of hyphens and quotes, and take a dot for a request."""
    cli, man = script("reference_cli"), script("reference_man")
    command = click.Command(
        "try",
        help="A \\ and .dots.\n\n.At the beginning, too.\n\n\b\n.code 'quoted'\n  --long-option `x` ~ ^\n",
        epilog="Example: tpm-mtls try --it",
        params=[click.Option(["--it"], default=3, show_default=True, help="What [not a default] it is.")],
    )
    described = cli.describe(
        command, click.Context(command, info_name="try", parent=click.Context(click.Group("x"), info_name="x"))
    )
    page = man.man_pages(cli.Command(("x",), "s", "", (), (), (), (described,)), "1")["x-try.1"]
    assert "A \\e and .dots.\n.PP\n\\&.At the beginning, too.\n.PP\n.nf\n\\&.code \\(aqquoted\\(aq\n" in page
    assert "  \\-\\-long\\-option \\(gax\\(ga \\(ti \\(ha\n.fi\n" in page
    assert "\\fB\\-\\-it\\fR INTEGER\nWhat [not a default] it is. (default: 3)\n" in page
    assert ".in +4n\n.nf\ntpm\\-mtls try \\-\\-it\n.fi\n.in\n" in page
