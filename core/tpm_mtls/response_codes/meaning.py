"""What is known of one response code."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from tpm_mtls.errors import PolicyError, TpmRefusedError, TpmUnavailableError

CHECK_POLICY = "tpm-mtls policy check says what differs from when it was made"
SHOW_POLICY = "see tpm-mtls policy show"
"""In hints; of the identity folder's key, unless `naming_key` says which."""

OUTDATED = (
    "boot the image of the newest policy, or have this one signed with a higher version: tpm-mtls policy sign, then "
    f"tpm-mtls policy install FILE; {CHECK_POLICY}"
)
"""The hint for a signed policy that a newer one has retired."""

_HIERARCHIES = {"--owner-auth", "--endorsement-auth", "--lockout-auth"}


def give_auth(option: str) -> str:
    """In a hint: in which forms ``option`` takes an authorization value; a hierarchy's may be sealed to the TPM."""
    forms = "file:F, credential:NAME or sealed:F" if option in _HIERARCHIES else "file:F or credential:NAME"
    return f"give the right one: {option} prompt, {forms}"


GIVE_AUTH = give_auth("--auth")


def naming_key(hint: str, key: object) -> str:
    """``hint``, which comes from this table, with ``key`` named in its commands about policies."""
    name = shlex.quote(str(key))
    hint = hint.replace("tpm-mtls policy check", f"tpm-mtls policy check --key {name}")
    return hint.replace("tpm-mtls policy show", f"tpm-mtls policy show {name}")


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
