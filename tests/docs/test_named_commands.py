"""No page, hint, unit or example names a command or an option that does not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.named_commands import COMPONENTS, ROOT, bare_options, code_of, command_line, hints, unknown_commands

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted(path for component in COMPONENTS for path in (ROOT / component).rglob("*.py"))
OTHERS = sorted(
    path
    for folder in ("examples", "packaging")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.parent.name not in {"man", "sysusers.d", "tmpfiles.d", "logrotate.d"}
)

# options of other programs that pages mention without a command that has them
FOREIGN = {
    "--require-hashes": "pip",
    "--simulate": "what there is not",
    "--key-file": "cryptsetup",
    "--volume": "docker run",
    "--only": "./run bench",
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_names_only_what_exists(page: Path) -> None:
    text = page.read_text()
    assert unknown_commands(code_of(text)) == []
    assert bare_options(text) - command_line().all_options() - FOREIGN.keys() == set()


def test_hints_name_only_what_exists() -> None:
    found = {_name(path): unknown_commands("\n".join(hints(path.read_text()))) for path in SOURCES}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_units_and_examples_name_only_what_exists() -> None:
    found = {_name(path): unknown_commands(path.read_bytes().decode(errors="replace")) for path in OTHERS}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("tpm-mtls keygem create", ["tpm-mtls keygem"]),
        ("tpm-mtls keygen creat --out k", ["tpm-mtls keygen creat"]),
        ("tpm-mtls keygen create --ot k", ["tpm-mtls keygen create --ot"]),
        ("tpm-mtls keygen create --ot=k", ["tpm-mtls keygen create --ot=k"]),
        ("tpm-mtls keygen create \\\n  --ot k", ["tpm-mtls keygen create --ot"]),
        ("tpm-mtls --debig keygen create", ["tpm-mtls --debig"]),
        ("tpm-mtls server device list|shows", ["tpm-mtls server device list|shows"]),
        ("tpm-mtls pki list --state valid|tpm-mtls", []),
        ("ExecStart=/usr/bin/tpm-mtls agent walk", ["tpm-mtls agent walk"]),
        ("$ x=$(tpm-mtls simulator stat --dir d)", ["tpm-mtls simulator stat"]),
        (
            'tpm-mtls keygen create --tcti "$(tpm-mtls simulator status --dir d)" --ot k',
            ["tpm-mtls keygen create --ot"],
        ),
        ("tpm-mtls trace -- tpm-mtls client gets x --trace", ["tpm-mtls client gets"]),
    ],
)
def test_what_does_not_exist_is_found(text: str, wrong: list[str]) -> None:
    found = unknown_commands(text)
    assert [each.replace(" --tcti …", "") for each in found] == wrong


@pytest.mark.parametrize(
    "text",
    [
        "tpm-mtls --debug keygen create|first-boot --pcrs … --out k",
        "tpm-mtls keygen show --ek | tee --append x",
        "tpm-mtls secret exec NAME -- ./app --its-own",
        "the tpm-mtls that made it, and /var/lib/tpm-mtls and User=tpm-mtls no",
        "tpm-mtls client COMMAND; tpm-mtls NOUN VERB",
        "install -o tpm-mtls -g tpm-mtls file",
        "useradd --gid tpm-mtls --no-create-home",
        "tpm-mtls: error: nothing here",
    ],
)
def test_what_exists_and_what_is_no_command_passes(text: str) -> None:
    assert unknown_commands(text) == []


def test_pages_are_read_as_people_read_them() -> None:
    page = (
        "Word `--one` and\n`tpm-mtls x`.\n\n```sh\nother --two\n```\n\nHere `--two 2` and `--three|--four=x`, `--`.\n"
    )
    assert bare_options(page) == {"--one", "--three", "--four"}
    assert code_of(page).splitlines()[:3] == ["--one", "tpm-mtls x", "sh"]


def test_advice_is_found_in_a_source() -> None:
    source = "_HINT: str = 'see a'\nraise E('m', hint=f'see {b} c' )\nhint = x or 'd'\nother = 'e'\nhint: str\n"
    assert list(hints(source)) == ["see a", "d", "see … c"]
