"""Policies in words, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from tpm_mtls.policy.document import PolicyAuthorize, PolicyAuthValue, PolicyNv, PolicyOr, PolicyPcr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion


def in_words(policy: Sequence[Assertion]) -> str:
    """What must hold for the TPM to use an object with ``policy``, in one line."""
    return ", and ".join(_words(assertion) for assertion in policy)


def _words(assertion: Assertion) -> str:
    match assertion:
        case PolicyPcr():
            several = "s" if len(assertion.pcrs) > 1 else ""
            numbers = ", ".join(map(str, assertion.pcrs))
            return f"PCR{several} {numbers} ({assertion.bank}) as on {assertion.recorded}"
        case PolicyAuthValue():
            return "the authorization value"
        case PolicyNv():
            return f"the counter {assertion.index} at most {assertion.version}"
        case PolicyOr():
            return " or ".join(f"[{in_words(branch)}]" for branch in assertion.branches)
        case PolicyAuthorize():
            about = _reference(assertion.policy_ref)
            return f"what the key {assertion.signer.name} signs{about}"
        case _:
            assert_never(assertion)


def _reference(policy_ref: str) -> str:
    text = bytes.fromhex(policy_ref).decode(errors="replace")
    if not text:
        return ""
    return f" for {text!r}" if text.isprintable() else f" for {policy_ref}"
