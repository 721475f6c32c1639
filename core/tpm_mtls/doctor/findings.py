"""What the doctor says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tpm_mtls.errors import TpmMtlsError

Level: TypeAlias = Literal["ok", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor's answer.

    Attributes:
        check: what was looked at, such as ``tpm.lockout``.
        level: ``ok``; ``warning`` for what works yet; ``problem`` for what does not.
        text: what was found.
        remedy: what to do; empty if nothing is to be done.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """An error of the project that an observation ended with.

    Attributes:
        kind: name of its class.
        message: what happened.
        hint: what to do.
        rc: the TPM's response code; 0 where there was none.
    """

    kind: str
    message: str
    hint: str
    rc: int = 0


def ok(check: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(check=check, level="ok", text=text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """It works yet, and should be looked at."""
    return Finding(check=check, level="warning", text=text, remedy=remedy)


def problem(check: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check=check, level="problem", text=text, remedy=remedy)


def failed(error: TpmMtlsError) -> Failed:
    """``error``, to be passed on."""
    rc: Any = getattr(error, "rc", 0)
    return Failed(kind=type(error).__name__, message=str(error), hint=error.hint, rc=rc)


def problem_of(check: str, error: Failed) -> Finding:
    """The problem that ``error`` tells."""
    return problem(check, error.message, error.hint)


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Those of ``findings`` that are problems, in their order: causes come before what follows from them."""
    return [finding for finding in findings if finding.level == "problem"]
