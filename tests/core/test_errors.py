"""The error tree is what its drawing says, and every error helps."""

from __future__ import annotations

import inspect
import re
import traceback

from tpm_mtls import cli, errors


def _classes() -> dict[str, type[errors.TpmMtlsError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.TpmMtlsError)
    }


def _drawn() -> dict[str, tuple[str | None, int | None]]:
    """Name -> (parent, exit code where one is drawn), read from the picture at the top of the module."""
    drawn: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)(\w+Error)(?: +(\d+))?(?: |$)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 - 1  # the root stands at column 4, each level 4 further
        del path[depth:]
        drawn[match[2]] = (path[-1] if path else None, int(match[3]) if match[3] else None)
        path.append(match[2])
    return drawn


def test_every_class_stands_in_the_drawing_under_its_parent() -> None:
    drawn = _drawn()
    assert drawn.keys() == _classes().keys()
    for name, cls in _classes().items():
        parent = drawn[name][0]
        assert cls.__bases__[0].__name__ == (parent or "Exception"), name


def test_drawn_exit_codes_are_the_classes_exit_codes() -> None:
    for name, (_, code) in _drawn().items():
        if code is not None:
            assert _classes()[name].exit_code == code, name


def test_every_exit_code_is_explained_by_the_command_lines_help() -> None:
    explained = {int(number) for number in re.findall(r"^ +(\d+)  \w", cli.main.epilog or "", flags=re.MULTILINE)}
    assert {cls.exit_code for cls in _classes().values()} | {0, 130} == explained


def test_every_class_says_what_it_is_for() -> None:
    assert all(cls.__doc__ for cls in _classes().values())


def test_an_error_prints_its_message_and_carries_hint_and_facts() -> None:
    error = errors.HandleOccupiedError("taken", hint="use another", handle=0x81000100)
    assert (str(error), error.hint, error.handle, error.exit_code) == ("taken", "use another", 0x81000100, 10)


def test_a_traceback_shows_the_hint_as_it_is_in_the_end() -> None:
    error = errors.UsageError("no such thing", hint="look again")
    error.hint += ", closely"
    assert traceback.format_exception_only(error) == [
        "tpm_mtls.errors.UsageError: no such thing\n",
        "hint: look again, closely\n",
    ]
