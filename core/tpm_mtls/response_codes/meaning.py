"""What is known of one response code."""

from __future__ import annotations

from dataclasses import dataclass

from tpm_mtls.errors import PolicyError, TpmRefusedError, TpmUnavailableError

KEY = "--key KEY"
"""In a hint: to be filled in by who knows the key."""

CHECK_POLICY = f"tpm-mtls policy check {KEY} says what differs from when it was made"

_HIERARCHIES = {"--owner-auth", "--endorsement-auth", "--lockout-auth"}


def give_auth(option: str) -> str:
    """In a hint: in which forms ``option`` takes an authorization value; a hierarchy's may be sealed to the TPM."""
    forms = "file:F, credential:NAME or sealed:F" if option in _HIERARCHIES else "file:F or credential:NAME"
    return f"give the right one: {option} prompt, {forms}"


GIVE_AUTH = give_auth("--auth")

Error = type[TpmRefusedError | PolicyError | TpmUnavailableError]


@dataclass(frozen=True)
class Meaning:
    """A row of the table.

    Attributes:
        name: as the specification or the header file spells it, such as ``TPM_RC_BAD_AUTH``.
        text: what it means, to be put after "cannot do this: ".
        causes: what usually leads to it, the likeliest first.
        hint: what to do about it.
        error: the class of the error that it becomes.
        note: what it is often taken for, or where else one meets it; mostly empty.
    """

    name: str
    text: str
    causes: tuple[str, ...]
    hint: str
    error: Error = TpmRefusedError
    note: str = ""
