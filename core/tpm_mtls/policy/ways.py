"""The ways through a policy: each a row of steps that leads to the object's authPolicy, if the TPM agrees. Pure.

A policy with an ``or``, or one for which several policies are signed, has more than one. What is proved is sent to the
TPM by `tpm_mtls.tpm.policy_session`; the relay (`tpm_mtls_relay`) does the same for TLS keys by its own means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tpm_mtls.errors import PolicyError
from tpm_mtls.policy.check import signed_for
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthorize, PolicyAuthValue, PolicyNv, PolicyOr, PolicyPcr
from tpm_mtls.policy.signing import verify_signed_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tpm_mtls.policy.document import Assertion, SignedPolicy, Signer
    from tpm_mtls.policy.files import FoundPolicy

WAYS_LIMIT: Final = 64
"""Ways that are tried; each that the TPM refuses costs one to three commands."""


@dataclass(frozen=True)
class ProvePcrs:
    """TPM2_PolicyPCR.

    Attributes:
        bank: ``sha256``, …
        pcrs: their numbers.
        expected: pcrDigest, which the TPM compares at once; empty to take the PCRs as they are.
    """

    bank: str
    pcrs: tuple[int, ...]
    expected: bytes


@dataclass(frozen=True)
class ProveAuthorization:
    """TPM2_PolicyAuthValue."""


@dataclass(frozen=True)
class ProveNv:
    """TPM2_PolicyNV."""

    assertion: PolicyNv


@dataclass(frozen=True)
class JoinBranches:
    """TPM2_PolicyOR, with the policyDigest of each branch."""

    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class ProveApproval:
    """TPM2_PolicyAuthorize: what was proved so far is what the signer approved.

    Attributes:
        signer: who signed.
        policy_ref: for what it is meant.
        digest: approvedPolicy.
        signature: TPMT_SIGNATURE over SHA-256(approvedPolicy || policyRef).
    """

    signer: Signer
    policy_ref: bytes
    digest: bytes
    signature: bytes


Step: TypeAlias = ProvePcrs | ProveAuthorization | ProveNv | JoinBranches | ProveApproval
Way: TypeAlias = tuple[Step, ...]


def ways_through(policy: Sequence[Assertion], signed: Sequence[FoundPolicy]) -> list[Way]:
    """The different ways through ``policy``, at most `WAYS_LIMIT`, with those of ``signed`` that are meant for it.

    1. A signed policy's digest and signature are verified before the TPM is asked; one that is wrong is left out.

    Raises:
        PolicyError: a signed policy is needed, and there is none, or only wrong ones (1).
    """
    problems: list[PolicyError] = []
    found: dict[Way, None] = {}
    for way in _ways(policy, signed, problems, early=False):
        found[way] = None
        if len(found) == WAYS_LIMIT:
            break
    if not found:
        raise problems[0] if problems else _unsigned(policy)
    return list(found)


def needs_authorization(policy: Sequence[Assertion]) -> bool:
    """Whether some way through ``policy`` takes the object's authorization value."""
    return any(
        isinstance(each, PolicyAuthValue)
        or (isinstance(each, PolicyOr) and any(needs_authorization(branch) for branch in each.branches))
        for each in policy
    )


def _ways(
    policy: Sequence[Assertion], signed: Sequence[FoundPolicy], problems: list[PolicyError], *, early: bool
) -> Iterator[Way]:
    """Early: the TPM shall compare the PCRs at once, so that a signed policy for another state costs one command.

    Otherwise it takes the PCRs as they are. Then a fixed policy is refused by the command itself, with the TPM's own
    code, and the branches of an ``or`` that look at the same PCRs are one way: TPM2_PolicyOR tells them apart.
    """
    first, *rest = policy
    tail = tuple(_step(each, early=early) for each in rest)
    if isinstance(first, PolicyOr):
        join = JoinBranches(tuple(map(policy_digest, first.branches)))
        for branch in first.branches:
            for head in _ways(branch, signed, problems, early=False):
                yield (*head, join, *tail)
    elif isinstance(first, PolicyAuthorize):
        for each in _approved(first, signed, problems):
            for head in _ways(each.policy, (), problems, early=True):
                yield (*head, _approval(first, each), *tail)
    else:
        yield (_step(first, early=early), *tail)


def _approved(
    authorize: PolicyAuthorize, signed: Sequence[FoundPolicy], problems: list[PolicyError]
) -> Iterator[SignedPolicy]:
    for found in signed_for(authorize, signed):
        try:
            verify_signed_policy(found.policy, authorize.signer, name=str(found.path))  # 1
        except PolicyError as error:
            problems.append(error)
            continue
        yield found.policy


def _approval(authorize: PolicyAuthorize, signed: SignedPolicy) -> ProveApproval:
    reference, digest, signature = map(bytes.fromhex, (authorize.policy_ref, signed.digest, signed.signature))
    return ProveApproval(authorize.signer, reference, digest, signature)


def _step(assertion: Assertion, *, early: bool) -> Step:
    match assertion:
        case PolicyPcr():
            return ProvePcrs(assertion.bank, assertion.pcrs, bytes.fromhex(assertion.digest) if early else b"")
        case PolicyNv():
            return ProveNv(assertion)
        case PolicyAuthValue():
            return ProveAuthorization()
        case PolicyOr() | PolicyAuthorize():
            raise PolicyError(
                "what comes before an or, or an authorize, would not count", hint="have the policy made again"
            )


def _unsigned(policy: Sequence[Assertion]) -> PolicyError:
    signers = {each.signer.name for each in policy if isinstance(each, PolicyAuthorize)}
    return PolicyError(
        f"there is no policy signed by {', '.join(sorted(signers)) or 'the operator'}",
        hint="install the one that is meant for this machine: tpm-mtls policy install FILE",
    )
