"""Policies as the standard's key files hold them, for tools that know the fields.

ASN.1 Specification for TPM 2.0 Key Files, 4 (policy) and 5 (authPolicy): commands that one after the other satisfy the
object's policy. It knows no alternatives, and no commands with an NV index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import CredentialError
from tpm_mtls.policy.check import signed_for
from tpm_mtls.policy.digest import POLICY_AUTH_VALUE, POLICY_AUTHORIZE, POLICY_PCR, pcr_selection
from tpm_mtls.policy.document import PolicyAuthorize, PolicyAuthValue, PolicyPcr
from tpm_mtls.structures.tss2_file import ApprovedPolicy, PolicyCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy

_NO_SIGNATURE: Final = b"\x00\x10"  # TPMT_SIGNATURE with TPM_ALG_NULL: the signed policies are in authPolicy


def policy_commands(policy: Sequence[Assertion]) -> tuple[PolicyCommand, ...]:
    """The commands that satisfy ``policy``.

    Raises:
        CredentialError: it has alternatives or an NV index, which the form cannot express.
    """
    return tuple(map(_command, policy))


def approved_policies(policy: Sequence[Assertion], signed: Sequence[FoundPolicy]) -> tuple[ApprovedPolicy, ...]:
    """Those of ``signed`` that are for ``policy`` and that the form can express; nothing is verified.

    Raises:
        CredentialError: ``policy`` itself cannot be expressed.
    """
    authorize = policy[0] if policy else None
    if not isinstance(authorize, PolicyAuthorize):
        return ()
    return tuple(
        ApprovedPolicy(
            each.policy.description or f"version {each.policy.version}",
            (
                _authorize(authorize, bytes.fromhex(each.policy.signature)),
                *map(_command, each.policy.policy),
                *map(_command, policy[1:]),
            ),
        )
        for each in signed_for(authorize, signed)
        if all(isinstance(assertion, PolicyPcr) for assertion in each.policy.policy)
    )


def _command(assertion: Assertion) -> PolicyCommand:
    match assertion:
        case PolicyPcr():
            return PolicyCommand(POLICY_PCR, _sized(bytes.fromhex(assertion.digest)) + pcr_selection(assertion))
        case PolicyAuthValue():
            return PolicyCommand(POLICY_AUTH_VALUE, b"")
        case PolicyAuthorize():
            return _authorize(assertion, _NO_SIGNATURE)
        case _:
            raise CredentialError(
                "the key file's standard form cannot express a policy with alternatives",
                hint="other tools cannot use this key; copy its PEM file and its .policy.json as they are",
            )


def _authorize(authorize: PolicyAuthorize, signature: bytes) -> PolicyCommand:
    """TPM2B_PUBLIC, TPM2B_DIGEST and TPMT_SIGNATURE: 4.3."""
    public, reference = bytes.fromhex(authorize.signer.public), bytes.fromhex(authorize.policy_ref)
    return PolicyCommand(POLICY_AUTHORIZE, _sized(public) + _sized(reference) + signature)


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content
