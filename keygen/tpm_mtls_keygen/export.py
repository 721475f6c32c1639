"""Key files with their policy inside, for tools that know the standard's policy fields.

ASN.1 Specification for TPM 2.0 Key Files, 4 (policy) and 5 (authPolicy): commands that one after the other satisfy the
key's policy. It knows no alternatives, and no commands with an NV index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import CredentialError
from tpm_mtls.policy.check import signed_for
from tpm_mtls.policy.digest import POLICY_AUTH_VALUE, POLICY_AUTHORIZE, POLICY_PCR, pcr_selection
from tpm_mtls.policy.document import PolicyAuthorize, PolicyAuthValue, PolicyPcr
from tpm_mtls.structures.tss2_key import PolicyCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion, PolicyDocument
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.structures import Tss2Key

_NO_SIGNATURE: Final = b"\x00\x10"  # TPMT_SIGNATURE with TPM_ALG_NULL: the signed policies are in authPolicy


def export_key(key: Tss2Key, document: PolicyDocument | None, signed: Sequence[FoundPolicy]) -> bytes:
    """The PEM file of ``key``, with its policy in the standard's fields.

    Args:
        key: the key file's content.
        document: its policy; none if it has none.
        signed: the signed policies there are; those that the form can express go into authPolicy.

    Raises:
        CredentialError: the policy has alternatives or an NV index, which the form cannot express.
    """
    if document is None:
        return key.to_pem()
    commands = [_command(each) for each in document.policy]
    authorize = document.policy[0]
    if not isinstance(authorize, PolicyAuthorize):
        return key.to_pem(commands)
    approved = {}
    for each in signed_for(authorize, signed):
        if all(isinstance(assertion, PolicyPcr) for assertion in each.policy.policy):
            first = _authorize(authorize, bytes.fromhex(each.policy.signature))
            name = each.policy.description or f"version {each.policy.version}"
            approved[name] = [first, *map(_command, each.policy.policy), *commands[1:]]
    return key.to_pem(commands, approved)


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
