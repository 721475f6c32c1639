"""Proving policies to the TPM, for sealed objects and NV indices: TPM 2.0 Library part 3 rev 1.59, 23."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never

from tpm2_pytss.constants import TPM2_EO
from tpm2_pytss.types import TPM2B_DIGEST, TPM2B_OPERAND, TPML_DIGEST

from tpm_mtls.errors import PolicyRefusedError, TpmRefusedError
from tpm_mtls.policy.ways import (
    JoinBranches,
    ProveApproval,
    ProveAuthorization,
    ProveNv,
    ProvePcrs,
    ways_through,
)
from tpm_mtls.tpm.approvals import Approvals
from tpm_mtls.tpm.pcrs import pcr_selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tpm_mtls.policy.document import Assertion, PolicyNv
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.policy.ways import Step, Way
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.sessions import Sessions

_Result = TypeVar("_Result")

# TPM 2.0 Library part 2 rev 1.59, 6.6.3; bit 6 says that a parameter is meant, bits 8 to 11 which one
_POLICY_FAIL: Final = 0x99D
_PCR_CHANGED: Final = 0x128
_POLICY: Final = 0x126
_NV_UNINITIALIZED: Final = 0x14A
_VALUE_1, _VALUE_4 = 0x1C4, 0x4C4
_HASH_2, _VALUE_2 = 0x2C3, 0x2C4
_HANDLES: Final = {0x18B, 0x28B}

_HINT: Final = "see which PCRs differ: tpm-mtls pcr diff"

_PATIENCE: Final = 3
"""Attempts, when a PCR changes in the midst of one: Linux' IMA extends PCR 10 for each new file that it measures."""


@dataclass(frozen=True)
class Proof:
    """What is proved to the TPM for the use of an object.

    Attributes:
        policy: the object's; empty where its authorization value counts instead.
        signed_policies: the newest first; those meant for ``policy`` are tried one after the other.
        may_have_value: whether the object may have an authorization value that ``policy`` does not ask for. Encrypted
            parameters depend on it all the same (part 1, 21.2), and a wrong one would not be noticed: other bytes would
            arrive. Then another session encrypts, which does not authorize anything.
    """

    policy: Sequence[Assertion] = ()
    signed_policies: Sequence[FoundPolicy] = ()
    may_have_value: bool = False


class PolicySessions:
    """Policy sessions of an open TPM in which a policy was proved."""

    def __init__(self, resources: Resources, sessions: Sessions) -> None:
        self._resources = resources
        self._context = resources.context
        self._sessions = sessions
        self._approvals = Approvals(resources)

    def use(self, proof: Proof, direction: int, send: Callable[[Mapping[str, Any]], _Result]) -> _Result:
        """What ``send`` gives back; it sends one command with the sessions that it is given, by parameter.

        Without a policy there is an HMAC session, which takes the object's authorization value: two commands in all.
        With one on PCRs three; PolicyOR, PolicyAuthValue and PolicyAuthorize are one more each, and three more each
        signature that the TPM has not verified before; one more for ``may_have_value``.

        Args:
            proof: what is proved.
            direction: `tpm_mtls.tpm.sessions.INTO_TPM` or `OUT_OF_TPM`.
            send: sends the command.

        Raises:
            PolicyRefusedError: the policy does not hold now.
            PolicyError: a signed policy is needed, and there is none, or only wrong ones.
        """
        if not proof.policy:
            with self._sessions.hmac(direction) as session:
                return send({"session1": session})
        ways = ways_through(proof.policy, proof.signed_policies)
        remaining = _PATIENCE
        while True:
            try:
                return self._try_all(ways, proof, direction, send)
            except PolicyRefusedError as error:
                remaining -= 1
                if error.rc != _PCR_CHANGED or not remaining:
                    raise

    def _try_all(
        self, ways: Sequence[Way], proof: Proof, direction: int, send: Callable[[Mapping[str, Any]], _Result]
    ) -> _Result:
        remaining = iter(ways)
        refusal = PolicyRefusedError("no way through the policy is left", hint=_HINT, rc=_POLICY_FAIL)
        for way in remaining:
            try:
                with self._sessions.policy() as session:
                    proved = self._prove(session, way, remaining)
                    if not proof.may_have_value or ProveAuthorization() in proved:
                        self._sessions.encrypt(session, direction)
                        return send({"session1": session})
                    with self._sessions.hmac(direction) as encrypting:
                        return send({"session1": session, "session2": encrypting})
            except PolicyRefusedError as error:
                if error.rc == _PCR_CHANGED:
                    raise
                refusal = error
        raise refusal

    def _prove(self, session: Any, way: Way, others: Iterator[Way]) -> Way:  # noqa: ANN401 - an ESYS_TR, of a library without types
        """Proves ``way``, or one of ``others`` as long as nothing at all of one was proved; returns which.

        After more than nothing another session is needed: TPM2_PolicyRestart would do for the TPM, but ESAPI would go
        on to take the authorization value into its HMACs where the first way did.
        """
        while True:
            try:
                self._prove_step(session, way[0])
            except PolicyRefusedError:
                following = next(others, None)
                if following is None:
                    raise
                way = following
                continue
            for step in way[1:]:
                self._prove_step(session, step)
            return way

    def _prove_step(self, session: Any, step: Step) -> None:  # noqa: ANN401 - as above
        try:
            self._send_step(session, step)
        except TpmRefusedError as error:
            if not _is_obstacle(step, error.rc):
                raise
            raise PolicyRefusedError(
                "the policy is not satisfied: this machine booted something else than what it is bound to",
                hint=_HINT,
                rc=_POLICY_FAIL,
            ) from error

    def _send_step(self, session: Any, step: Step) -> None:  # noqa: ANN401 - as above
        if isinstance(step, ProveApproval):
            self._prove_approval(session, step)
            return
        with self._resources.command("prove the policy"):
            match step:
                case ProvePcrs():
                    selection = pcr_selection(step.bank, step.pcrs)
                    self._context.policy_pcr(session, TPM2B_DIGEST(step.expected), selection)
                case ProveAuthorization():
                    self._context.policy_auth_value(session)
                case ProveNv():
                    self._prove_nv(session, step.assertion)
                case JoinBranches():
                    self._context.policy_or(session, TPML_DIGEST([TPM2B_DIGEST(each) for each in step.digests]))
                case _:
                    assert_never(step)

    def _prove_nv(self, session: Any, assertion: PolicyNv) -> None:  # noqa: ANN401 - as above
        index = self._resources.refer(int(assertion.index, 16), bytes.fromhex(assertion.name))
        with self._resources.referring(index) as resource:
            operand = TPM2B_OPERAND(bytes.fromhex(assertion.operand))
            self._context.policy_nv(resource, resource, session, operand, TPM2_EO.UNSIGNED_LE)

    def _prove_approval(self, session: Any, step: ProveApproval) -> None:  # noqa: ANN401 - as above
        is_old = self._approvals.knows(step)
        try:
            self._authorize(session, step)
        except TpmRefusedError as error:
            if error.rc != _VALUE_4 or not is_old:
                raise
            self._approvals.forget(step)  # the TPM was cleared
            self._authorize(session, step)

    def _authorize(self, session: Any, step: ProveApproval) -> None:  # noqa: ANN401 - as above
        ticket = self._approvals.ticket(step)
        with self._resources.command("prove the policy"):
            self._context.policy_authorize(
                session, step.digest, bytes.fromhex(step.signer.name), ticket, step.policy_ref
            )


def _is_obstacle(step: Step, rc: int) -> bool:
    """Whether that the TPM refused ``step`` says something about the policy, and not about the TPM."""
    match step:
        case ProvePcrs():
            return rc in {_VALUE_1, _HASH_2, _VALUE_2}
        case ProveNv():
            return rc in {_POLICY, _NV_UNINITIALIZED, *_HANDLES}
        case JoinBranches():
            return rc == _VALUE_1
        case ProveApproval():
            return rc == _VALUE_4
        case _:
            return False
