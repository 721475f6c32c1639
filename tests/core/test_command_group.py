"""The help of every command can be read, and its example copied, on a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from tpm_mtls.cli import main, run
from tpm_mtls.command_group import CommandGroup, first_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, with the words by which they are called."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, *path, name)


def help_of(*path: str) -> str:
    done = CliRunner().invoke(main, [*path, "--help"], terminal_width=80)
    assert done.exit_code == 0
    return done.output


def test_no_group_cuts_off_what_its_commands_are_for() -> None:
    groups = [path for path, command in commands(main) if isinstance(command, click.Group)]
    assert ("pki", "ek-roots") in groups
    for path in groups:
        listed = help_of(*path).partition("\nCommands:\n")[2]
        assert listed, path
        assert "..." not in listed, path


def test_every_example_is_one_that_can_be_copied() -> None:
    seen = 0
    for path, command in commands(main):
        example = next((line for line in (command.epilog or "").splitlines() if line.startswith("Example: ")), None)
        if example is not None:
            seen += 1
            assert f"  {example}\n" in help_of(*path), f"begin it with \\b: {example}"
    assert seen > 50


def test_a_group_lists_what_is_not_hidden_in_whole_and_in_lines_that_fit() -> None:
    group = CommandGroup("probe")
    words = "Does something that takes more words to tell than a line of a terminal has room for"
    group.add_command(click.Command("long", help=f"{words}; and more.\n\n    Details."))
    group.add_command(click.Command("bare"))
    group.add_command(click.Command("secret", hidden=True, help="Not for everybody."))
    text = group.get_help(click.Context(group, info_name="probe", terminal_width=60))
    assert " ".join(text.partition("Commands:")[2].split()) == f"bare long {words}"
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "Commands" not in CommandGroup("empty").get_help(click.Context(CommandGroup("empty"), info_name="empty"))


@pytest.mark.parametrize("path", [(), ("keygen",), ("pki", "token")])
def test_without_a_command_a_group_shows_its_help_and_complains_of_nothing(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"Usage: {' '.join(('tpm-mtls', *path))} [OPTIONS] COMMAND")
    assert "\nCommands:\n" in err
    assert "error" not in err.partition("Exit status")[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["keygne"], "no such command 'keygne': did you mean 'keygen'?"),
        (["keygen", "fist-boot"], "no such command 'fist-boot': did you mean 'first-boot'?"),
        (["keygen", "re"], "no such command 're'"),
        (["--quiet"], "no such option '--quiet'"),
        (["keygen", "--quiet"], "no such option '--quiet'"),
    ],
)
def test_what_is_misspelt_is_told_with_what_may_be_meant(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    group = " ".join(["tpm-mtls", *arguments[:-1]])
    assert run(arguments) == 2
    assert capsys.readouterr() == ("", f"tpm-mtls: error: {error}\ntpm-mtls: hint: see {group} --help\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Make a key; never\n    overwrites. More.", "Make a key"),
        ("Keys in the TPM:\n    create, show.", "Keys in the TPM: create, show"),
        ("Say it.\n\n    And more.", "Say it"),
        ("", ""),
        (None, ""),
    ],
)
def test_what_a_command_is_for_is_the_first_sentence_of_its_help(text: str | None, sentence: str) -> None:
    assert first_sentence(text) == sentence
