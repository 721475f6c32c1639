"""The ways through a policy: each a row of TPM commands that leads to the key's authPolicy, if the TPM agrees.

Pure: what is to be sent, not the sending.
"""

from __future__ import annotations

from tpm_mtls_relay.messages.commands import POLICY_AUTH_VALUE, POLICY_AUTHORIZE, POLICY_NV, POLICY_OR, POLICY_PCR
from tpm_mtls_relay.messages.responses import sized
from tpm_mtls_relay.policies.digest import NV_COMPARISON, branch_digests, pcr_selection
from tpm_mtls_relay.policies.file import Assertion, Authorize, Nv, Or, Pcr, SignedPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Path = tuple["Step", ...]

PATH_LIMIT = 64
"""Ways that are tried for one signature; each that the TPM refuses costs one to three commands."""


class Approval:
    """A signed policy, and the assertion that asks for one."""

    __slots__ = ("authorize", "signed")

    def __init__(self, authorize: Authorize, signed: SignedPolicy) -> None:
        self.authorize = authorize
        self.signed = signed


class Step:
    """One command; steps that send the same are equal.

    Attributes:
        code: TPM_CC.
        parameters: its parameters, as far as they are known beforehand: TPM2_PolicyAuthorize lacks the ticket.
        subject: what it is about.
    """

    __slots__ = ("code", "parameters", "subject")

    def __init__(self, code: int, parameters: bytes, subject: Assertion | Approval) -> None:
        self.code = code
        self.parameters = parameters
        self.subject = subject

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self._sent == other._sent

    def __hash__(self) -> int:
        return hash(self._sent)

    @property
    def _sent(self) -> tuple[int, bytes, int, bytes]:
        index = self.subject.index if isinstance(self.subject, Nv) else 0
        signature = self.subject.signed.signature if isinstance(self.subject, Approval) else b""
        return self.code, self.parameters, index, signature


def paths(
    policy: tuple[Assertion, ...], algorithm: str, approved: Callable[[Authorize], list[SignedPolicy]]
) -> list[Path]:
    """The different ways through ``policy``, at most `PATH_LIMIT`.

    Args:
        policy: assertions of a key.
        algorithm: the hash function of the key's Name and of the session.
        approved: the signed policies for an assertion, the preferred one first.
    """
    found: dict[Path, None] = {}
    for path in _paths(policy, algorithm, approved, early=False):
        found[path] = None
        if len(found) == PATH_LIMIT:
            break
    return list(found)


def _paths(
    policy: tuple[Assertion, ...],
    algorithm: str,
    approved: Callable[[Authorize], list[SignedPolicy]],
    *,
    early: bool,
) -> Iterator[Path]:
    """Early: the TPM shall compare the PCRs at once, so that a wrong signed policy costs one command, not four.

    Otherwise it takes the PCRs as they are. Then a key's own policy is refused by TPM2_Sign, with the TPM's own code,
    and the branches of an ``or`` that look at the same PCRs are one way, which TPM2_PolicyOR tells apart by itself.
    """
    first, rest = policy[0], policy[1:]
    if isinstance(first, Or):
        digests = branch_digests(first, algorithm)
        step = Step(POLICY_OR, len(digests).to_bytes(4, "big") + b"".join(map(sized, digests)), first)
        tail = (step, *(_step(assertion, early=early) for assertion in rest))
        for branch in first.branches:
            for head in _paths(branch, algorithm, approved, early=False):
                yield head + tail
    elif isinstance(first, Authorize):
        for signed in approved(first):
            ending = sized(signed.digest) + sized(first.policy_ref) + sized(first.signer_name)
            step = Step(POLICY_AUTHORIZE, ending, Approval(first, signed))
            tail = (step, *(_step(assertion, early=early) for assertion in rest))
            for head in _paths(signed.policy, algorithm, approved, early=True):
                yield head + tail
    else:
        yield tuple(_step(assertion, early=early) for assertion in policy)


def _step(assertion: Assertion, *, early: bool) -> Step:
    if isinstance(assertion, Pcr):
        expected = assertion.digest if early else b""
        return Step(POLICY_PCR, sized(expected) + pcr_selection(assertion), assertion)
    if isinstance(assertion, Nv):
        return Step(POLICY_NV, sized(assertion.operand) + NV_COMPARISON, assertion)
    return Step(POLICY_AUTH_VALUE, b"", assertion)  # nothing else is left: or and authorize come first in their list
