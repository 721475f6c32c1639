"""The operator's signatures under policies, verified by the TPM: TPM 2.0 Library part 3 rev 1.59, 20.1 and 23.16."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPMT_SIGNATURE

from tpm_mtls.tpm.boundary import sized_public

if TYPE_CHECKING:
    from tpm_mtls.policy.ways import ProveApproval
    from tpm_mtls.tpm.resources import Resources

TICKETS_LIMIT: Final = 64
"""Tickets that are kept; beyond, all are asked for anew."""


class Approvals:
    """The TPM's tickets (TPMT_TK_VERIFIED) for signatures that it has verified; kept in memory only."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context
        self._tickets: dict[tuple[str, ...], Any] = {}

    def ticket(self, approval: ProveApproval) -> Any:  # noqa: ANN401 - a TPMT_TK_VERIFIED, of a library without types
        """The ticket; costs three commands the first time, then none."""
        key = _key(approval)
        if key not in self._tickets:
            if len(self._tickets) >= TICKETS_LIMIT:
                self._tickets.clear()
            self._tickets[key] = self._verify(approval)
        return self._tickets[key]

    def knows(self, approval: ProveApproval) -> bool:
        """Whether its ticket is from before."""
        return _key(approval) in self._tickets

    def forget(self, approval: ProveApproval) -> None:
        """The TPM does not take its ticket any more."""
        self._tickets.pop(_key(approval), None)

    def _verify(self, approval: ProveApproval) -> Any:  # noqa: ANN401 - as above
        """By a ticket of the owner hierarchy: one of the null hierarchy would end with the next restart."""
        signed = approval.signed
        digest = hashlib.sha256(bytes.fromhex(signed.digest + signed.policy_ref)).digest()
        with self._resources.command("load the key that signs policies"):
            loaded = self._context.load_external(
                sized_public(bytes.fromhex(approval.authorize.signer.public)), hierarchy=ESYS_TR.OWNER
            )
            key = self._resources.register(loaded)
        try:
            with self._resources.command("verify a signed policy"):
                signature, _ = TPMT_SIGNATURE.unmarshal(bytes.fromhex(signed.signature))
                return self._context.verify_signature(loaded, digest, signature)
        finally:
            self._resources.flush(key)


def _key(approval: ProveApproval) -> tuple[str, ...]:
    signed = approval.signed
    return approval.authorize.signer.public, signed.digest, signed.policy_ref, signed.signature
