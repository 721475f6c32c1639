"""Putting a signed policy in force on a device, and the ones before it out of force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import PolicyError, StateError
from tpm_mtls.files import write_atomic
from tpm_mtls.policy.check import judge
from tpm_mtls.policy.document import PolicyAuthorize, PolicyNv, each_assertion, encode
from tpm_mtls.policy.files import POLICY_FILE, SIGNED_SUFFIX, find_signed_policies
from tpm_mtls.policy.observation import observe
from tpm_mtls.policy.signing import verify_signed_policy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpm_mtls.policy.document import Assertion, PolicyDocument, SignedPolicy
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.tpm import Tpm

STEPS_LIMIT: Final = 1000
"""How far a counter is advanced at once: each step is a write of NV memory, which endures some 100,000."""


@dataclass(frozen=True)
class Installed:
    """What was done.

    Attributes:
        path: where the policy is.
        written: whether it was not there before.
        steps: by how much the counter was advanced.
        holds: whether the policy holds now. The counter is advanced only then.
        older_retired: whether its counter stands at its version, so that no older one holds any more.
    """

    path: Path
    written: bool
    steps: int
    holds: bool
    older_retired: bool

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return self.written or self.steps > 0


def install_policy(
    tpm: Tpm, folder: Path, signed: SignedPolicy, document: PolicyDocument, *, retire_now: bool = False
) -> Installed:
    """Writes ``signed`` to ``folder``, and advances its counter to its version, so that older ones hold no more.

    1. The key's policy takes policies of this signer, for this policyRef.
    2. The signature verifies.
    3. No newer one is installed, and the counter is not beyond its version.

    An update's policy may be installed before the update is booted: the counter then stays, so that the running system
    goes on, and is advanced when this is done again afterwards. Done twice it changes nothing; killed anywhere, the
    next time finishes it.

    Args:
        tpm: an open TPM.
        folder: where the key's policies are.
        signed: the policy.
        document: the key's own, of which `key_policy` says that it is the key's.
        retire_now: advance the counter even if ``signed`` does not hold now.

    Raises:
        PolicyError: 1 or 2, or it has a counter that is not in the TPM.
        StateError: 3.
        StorageError: it cannot be written.
    """
    authorize = check_is_for(signed, document)  # 1
    verify_signed_policy(signed, authorize.signer)  # 2
    path = folder / f"{signed.signer[4:20]}-{signed.version:06}{SIGNED_SUFFIX}"
    others, _ = find_signed_policies([folder])
    present = observe(tpm, signed.policy, ())
    counters = {index: present.counters[index] for index in _counters(signed.policy)}
    _check_not_older(signed, [each for each in others if _is_approved(each, authorize)], counters)  # 3
    written = _write(path, signed, others)
    steps = 0
    holds = judge(signed.policy, present, ()).holds
    if holds or retire_now:
        for index, counter in counters.items():
            steps += _advance(tpm, index, counter or 0, signed.version)
    retired = bool(counters) and (holds or retire_now or set(counters.values()) == {signed.version})
    return Installed(path, written, steps, holds, retired)


def check_is_for(signed: SignedPolicy, document: PolicyDocument) -> PolicyAuthorize:
    """The assertion of a key's policy ``document`` by which it takes ``signed``; no signature is verified.

    Raises:
        PolicyError: the key takes no signed policies, or those of another signer or policyRef.
    """
    found = [each for each in each_assertion(document.policy) if isinstance(each, PolicyAuthorize)]
    for authorize in found:
        if (authorize.signer.name, authorize.policy_ref) == (signed.signer, signed.policy_ref):
            return authorize
    if not found:
        raise PolicyError(
            "the key's policy is fixed: it takes no signed ones",
            hint="make a key with --policy-signer: tpm-mtls keygen create --help",
        )
    raise PolicyError(
        f"the key takes no policies of the signer {signed.signer} for {signed.policy_ref or 'no policyRef'}",
        hint="see whose it takes: tpm-mtls policy show",
    )


def _is_approved(found: FoundPolicy, authorize: PolicyAuthorize) -> bool:
    try:
        verify_signed_policy(found.policy, authorize.signer)
    except PolicyError:
        return False
    return found.policy.policy_ref == authorize.policy_ref


def _check_not_older(signed: SignedPolicy, others: Sequence[FoundPolicy], counters: dict[int, int | None]) -> None:
    newest = max((each.policy.version for each in others), default=0)
    if newest > signed.version:
        raise StateError(
            f"version {signed.version} is older than version {newest}, which is installed",
            hint=f"boot the image of the newest one, or have this one signed with --version {newest + 1} or more: "
            "tpm-mtls policy sign",
        )
    for index, counter in counters.items():
        if counter is None:
            raise PolicyError(
                f"the policy needs the counter {index:#010x}, which this TPM does not have",
                hint="it is made with the key: tpm-mtls keygen create --policy-signer; or sign with --counter none",
            )
        if counter > signed.version:
            raise StateError(
                f"version {signed.version} is outdated: the counter {index:#010x} stands at {counter}",
                hint=f"have it signed with --version {counter} or more; "
                "a new counter begins after the highest one that the TPM ever had",
            )
        if signed.version - counter > STEPS_LIMIT:
            raise StateError(
                f"version {signed.version} is {signed.version - counter} ahead of the counter {index:#010x}",
                hint=f"each step wears out the TPM's memory: sign with a version of {counter + 1} or a little more",
            )


def _write(path: Path, signed: SignedPolicy, others: Sequence[FoundPolicy]) -> bool:
    if any(each.policy == signed for each in others):
        return False
    write_atomic(path, encode(signed), mode=POLICY_FILE)
    return True


def _advance(tpm: Tpm, index: int, counter: int, version: int) -> int:
    for _ in range(version - counter):
        tpm.counters.increment(index)
    return version - counter


def _counters(policy: Sequence[Assertion]) -> set[int]:
    return {int(each.index, 16) for each in each_assertion(policy) if isinstance(each, PolicyNv)}
