"""The operator's signatures under policies, verified by the TPM: TPM 2.0 Library part 3 rev 1.59, 20.1 and 23.16."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPMT_SIGNATURE

from tpm_mtls.tpm.boundary import sized_public
from tpm_mtls.tpm.ledger import Loaded

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
        self._tickets: dict[ProveApproval, Any] = {}

    def ticket(self, approval: ProveApproval) -> Any:  # noqa: ANN401 - a TPMT_TK_VERIFIED, of a library without types
        """The ticket; costs three commands the first time, then none."""
        if approval not in self._tickets:
            if len(self._tickets) >= TICKETS_LIMIT:
                self._tickets.clear()
            self._tickets[approval] = self._verify(approval)
        return self._tickets[approval]

    def knows(self, approval: ProveApproval) -> bool:
        """Whether its ticket is from before."""
        return approval in self._tickets

    def forget(self, approval: ProveApproval) -> None:
        """The TPM does not take its ticket any more."""
        self._tickets.pop(approval, None)

    def _verify(self, approval: ProveApproval) -> Any:  # noqa: ANN401 - as above
        """By a ticket of the owner hierarchy: one of the null hierarchy would end with the next restart."""
        digest = hashlib.sha256(approval.digest + approval.policy_ref).digest()
        with self._resources.loading(
            "load the key that signs policies", Loaded("object", public=approval.signer.public)
        ):
            loaded = self._context.load_external(
                sized_public(bytes.fromhex(approval.signer.public)), hierarchy=ESYS_TR.OWNER
            )
            self._resources.register(loaded)
        with self._resources.flushing(loaded), self._resources.command("verify a signed policy"):
            signature, _ = TPMT_SIGNATURE.unmarshal(approval.signature)
            return self._context.verify_signature(loaded, digest, signature)
