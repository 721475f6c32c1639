"""The operator's signatures under policies, verified by the TPM: TPM 2.0 Library part 3 rev 1.59, 20.1 and 23.16."""

from __future__ import annotations

from tpm_mtls_relay.errors import POLICY_DAMAGED, POLICY_SIGNATURE, RelayError, UnreadableError
from tpm_mtls_relay.messages.commands import LOAD_EXTERNAL, VERIFY_SIGNATURE
from tpm_mtls_relay.messages.responses import sized
from tpm_mtls_relay.messages.wire import simple_command
from tpm_mtls_relay.policies.digest import approval_digest
from tpm_mtls_relay.policies.session import TpmRefusalError, answer_of, malformed, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.policies.paths import Approval

_OWNER = 0x40000001  # TPM_RH_OWNER: a ticket of the null hierarchy would end with the next restart
_FORMAT_ONE = 0x80
_PARAMETER = 0x40
_HIERARCHY = 3  # parameter of TPM2_LoadExternal: the owner's may be switched off

TICKETS_LIMIT = 64
"""Tickets that are kept; beyond, all are asked for anew."""


class Approvals:
    """The TPM's tickets (TPMT_TK_VERIFIED) for signatures that it has verified; kept in memory only."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._tickets: dict[tuple[bytes, ...], bytes] = {}

    def ticket(self, approval: Approval) -> bytes:
        """The ticket; costs three commands the first time, then none.

        Raises:
            RelayError: POLICY_DAMAGED if the TPM cannot use the signer's key, POLICY_SIGNATURE if the signature is not
                that key's, or what the TPM answered.
        """
        key = _key(approval)
        if key not in self._tickets:
            if len(self._tickets) >= TICKETS_LIMIT:
                self._tickets.clear()
            self._tickets[key] = self._verify(approval)
        return self._tickets[key]

    def knows(self, approval: Approval) -> bool:
        """Whether its ticket is from before."""
        return _key(approval) in self._tickets

    def forget(self, approval: Approval) -> None:
        """The TPM does not take its ticket any more."""
        self._tickets.pop(_key(approval), None)

    def _verify(self, approval: Approval) -> bytes:
        public = approval.authorize.signer
        loading = simple_command(LOAD_EXTERNAL, sized(b"") + sized(public) + _OWNER.to_bytes(4, "big"))
        try:
            answer = answer_of(self._exchange, loading)
        except TpmRefusalError as error:
            if not _blames_parameters(error.code) or error.code >> 8 == _HIERARCHY:
                raise
            raise RelayError("the TPM cannot use the key that signs policies", POLICY_DAMAGED) from error
        try:
            handle = answer.number(4)
        except UnreadableError as error:
            raise malformed(error) from error
        try:
            return self._ticket_by(handle, approval)
        finally:
            remove(self._exchange, handle)

    def _ticket_by(self, handle: int, approval: Approval) -> bytes:
        parameters = sized(approval_digest(approval.signed)) + approval.signed.signature
        try:
            return answer_of(self._exchange, simple_command(VERIFY_SIGNATURE, parameters, handles=(handle,))).rest()
        except TpmRefusalError as error:
            if not _blames_parameters(error.code):
                raise
            raise RelayError("a signed policy's signature is wrong", POLICY_SIGNATURE) from error


def _key(approval: Approval) -> tuple[bytes, ...]:
    signed = approval.signed
    return approval.authorize.signer, signed.digest, signed.policy_ref, signed.signature


def _blames_parameters(code: int) -> bool:
    """A format-one code (part 2, 6.6.3) for a parameter or the command's size; not for a handle, and no warning."""
    return code < 1 << 12 and bool(code & _FORMAT_ONE) and (bool(code & _PARAMETER) or code >> 8 == 0)
