"""A diagnosis for a person, and for a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tpm_mtls.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.doctor.diagnosis import Diagnosis

FORMAT: Final = 1
"""Version of the JSON answer."""

_LEVEL_WIDTH: Final = len("problem")
_CHECK_WIDTH: Final = 22


def as_text(diagnosis: Diagnosis) -> str:
    """A line for each finding, one more for each remedy, and the sum."""
    return "\n".join([*_lines(diagnosis), summary(diagnosis)])


def as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """The findings, as ``--json`` has them."""
    return {
        "format": FORMAT,
        "healthy": not diagnosis.problems,
        "tcti": diagnosis.tcti,
        "findings": msgspec.to_builtins(diagnosis.findings),
    }


def summary(diagnosis: Diagnosis) -> str:
    """How many problems and warnings there are."""
    warnings = sum(finding.level == "warning" for finding in diagnosis.findings)
    return f"{_count(len(diagnosis.problems), 'problem')}, {_count(warnings, 'warning')}"


def failure(diagnosis: Diagnosis) -> StateError:
    """The error with which the command ends where there is a problem: it names the first, which is the cause."""
    first = diagnosis.problems[0]
    more = len(diagnosis.problems) - 1
    return StateError(f"{first.check}: {first.text}" + (f"; and {more} more" if more else ""), hint=first.remedy)


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    for finding in diagnosis.findings:
        head = f"{finding.level:{_LEVEL_WIDTH}}  {finding.check:{_CHECK_WIDTH}}  "
        yield head + finding.text
        if finding.remedy:
            yield " " * len(head) + f"-> {finding.remedy}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
