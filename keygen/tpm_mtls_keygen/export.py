"""Key files with their policy inside, for tools that know the standard's policy fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.policy.key_file import approved_policies, policy_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import PolicyDocument
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.structures import Tss2Key


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
    return key.to_pem(policy_commands(document.policy), dict(approved_policies(document.policy, signed)))
