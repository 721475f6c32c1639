"""The reference pages and the manual pages say what the program says."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpm_mtls import errors
from tpm_mtls.configuration import parse_configuration
from tpm_mtls.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
MANUALS = sorted((ROOT / "packaging" / "man").iterdir())

ANSWERS_NOTHING = {"tpm-mtls secret exec"}  # another program takes its place


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a module of ``scripts``."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


def test_every_page_is_what_the_program_says(script: Callable[[str], Any]) -> None:
    reference = script("reference")
    assert reference.outdated(reference.pages(), ROOT) == [], "run scripts/reference.py"


def test_a_page_that_differs_is_missing_or_stale_is_named_and_put_right(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    reference = script("reference")
    folder = tmp_path / "packaging" / "man"
    folder.mkdir(parents=True)
    for name in ("same.1", "other.1", "old.1"):
        (folder / name).write_text("text\n")
    made = {f"packaging/man/{name}": "text\n" for name in ("same.1", "new.1")} | {"packaging/man/other.1": "another\n"}
    found = [f"packaging/man/{name}.1" for name in ("new", "old", "other")]
    assert reference.outdated(made, tmp_path) == found
    assert reference.write(made, tmp_path) == found
    assert reference.outdated(made, tmp_path) == []
    assert sorted(path.name for path in folder.iterdir()) == ["new.1", "other.1", "same.1"]
    assert (folder / "other.1").read_text() == "another\n"


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


def test_every_command_says_what_it_is_for_with_an_example_and_answers_scripts(script: Callable[[str], Any]) -> None:
    for command in script("reference_cli").command_line().walk():
        assert command.summary, command.name
        assert all(option.text for option in command.options), command.name
        if not command.commands:
            assert any("Example" in block.text for block in command.epilog), command.name
            names = {option.names for option in command.options}
            assert "--json" in names or command.name in ANSWERS_NOTHING, command.name


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


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), min_size=1))
def test_groff_prints_whatever_a_help_says(script: Callable[[str], Any], lines: list[str]) -> None:
    block = script("reference_cli").Block("\n".join(lines), literal=True)
    page = "\n".join([".TH X 1", ".nh", *script("reference_man").blocks([block]), ""])
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-c", "-rLL=10000n"],
        input=page,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [line.strip().replace("\N{MINUS SIGN}", "-") for line in done.stdout.splitlines()[1:-1]]
    assert [line for line in shown if line] == lines


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


def test_every_environment_variable_is_described(script: Callable[[str], Any]) -> None:
    configuration = script("reference_configuration")
    assert configuration.variables_read() == configuration.VARIABLES.keys()


def test_every_setting_of_the_configuration_file_is_described(script: Callable[[str], Any]) -> None:
    page = script("reference_configuration").configuration_page()
    with pytest.raises(UsageError, match="unknown setting") as refused:
        parse_configuration(b'nothing = "x"', Path("config.toml"))
    for name in refused.value.hint.removeprefix("known ones: ").split(", "):
        assert f"\n| `{name}` |" in page


def test_the_api_page_names_what_can_be_imported(script: Callable[[str], Any]) -> None:
    page = script("reference_api").api_page()
    imports = re.findall(r"^from (tpm_mtls\S*) import (\w+)$", page, re.MULTILINE)
    assert len(imports) > 20
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_every_error_class_is_on_the_api_page(script: Callable[[str], Any]) -> None:
    page = script("reference_api").api_page()
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.TpmMtlsError):
            assert f"**`{name}`**: " in page


def test_a_docstring_becomes_markdown(script: Callable[[str], Any]) -> None:
    api = script("reference_api")
    tree = ast.parse(
        '"""What it is.\n\n    code()\n\n    more()\n\nWith ``a`` word.\n"""\n'
        "class Thing(Parent):\n"
        '    """A thing.\n\n    Attributes:\n        one: the first,\n            on two lines.\n    """\n\n'
        "    one: int = 1\n\n"
        "    @property\n    def two(self) -> str:\n        '''Two.'''\n\n"
        "    def three(self, a: int, *rest: str, b: bool = True, **more: object) -> None:\n"
        "        '''Three.\n\n        Returns:\n            Nothing.\n        '''\n\n"
        "    def _four(self): ...\n"
    )
    page = "\n\n".join(api.module_text(api.Module("thing", tree), ["Thing"]))
    assert "## thing\n\nWhat it is.\n\n```python\ncode()\n\nmore()\n```\n\nWith `a` word.\n\n### Thing\n" in page
    assert (
        "class Thing(Parent):\n    one: int = 1\n```\n\nA thing.\n\n*Attributes:*\n\n- `one`: the first, on two lines."
        in page
    )
    assert "#### Thing.two\n\n```python\ntwo: str\n```\n\nTwo." in page
    assert (
        "three(a: int, *rest: str, b: bool = True, **more: object) -> None\n```\n\nThree.\n\n*Returns:*\n\nNothing."
        in page
    )
    assert "_four" not in page


def test_a_public_name_that_is_gone_is_an_error(script: Callable[[str], Any]) -> None:
    api = script("reference_api")
    with pytest.raises(LookupError, match=r"tpm_mtls.identity has no gone"):
        api.load_module("tpm_mtls.identity").definition("gone")
    with pytest.raises(LookupError, match=r"there is no module tpm_mtls.gone"):
        api.load_module("tpm_mtls.gone")
    with pytest.raises(LookupError, match=r"tpm_mtls.identity has no constant GONE"):
        script("reference_configuration").constant("tpm_mtls.identity", "GONE")
