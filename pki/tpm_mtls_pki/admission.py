"""Checks 8 and 9: to which device a proved TPM belongs, what it is called, and who has to agree. Pure rules.

The store's side is `tpm_mtls_pki.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.evidence_checks import Residency
from tpm_mtls_pki.approvals import State
from tpm_mtls_pki.evidence.verifier import ALLOW_LIST
from tpm_mtls_pki.groups import ApprovalRule, Naming
from tpm_mtls_pki.policy import Permit, Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls_pki.allow_list import Entry
    from tpm_mtls_pki.approvals import Approval
    from tpm_mtls_pki.attestations import Attestation
    from tpm_mtls_pki.evidence import Verdict
    from tpm_mtls_pki.groups import Group

_NAME_DIGITS: Final = 40  # of the hash: 160 bits, so that nobody finds two endorsement keys with one name

BINDING, RENEWAL = 8, 9


@dataclass(frozen=True)
class TpmFacts:
    """What the store knows about a TPM.

    Attributes:
        entry: its entry on the allow-list.
        group: the rules of its group.
        device: the device that it is bound to.
        approval: its place in the approval queue.
    """

    entry: Entry | None
    group: Group
    device: str | None = None
    approval: Approval | None = None


@dataclass(frozen=True)
class DeviceFacts:
    """What the store knows about a device name, and about the key that is to be certified for it.

    Attributes:
        holder: the TPM that the name is bound to.
        was_bound: whether it was ever bound to one.
        was_fixed: whether the device ever had a key that was born in its TPM.
        earlier: what was proved about this very key before.
    """

    holder: str | None = None
    was_bound: bool = False
    was_fixed: bool = False
    earlier: Sequence[Attestation] = ()


@dataclass(frozen=True)
class Name:
    """What a device is to be called.

    Attributes:
        device: the name; none if it has none yet.
        settled: whether the administrator, or an earlier enrollment, said so; else it is only asked for.
    """

    device: str | None
    settled: bool


def ek_device_name(ek_hash: str) -> str:
    """The name of a device that is named after its endorsement key."""
    return f"ek-{ek_hash[:_NAME_DIGITS]}"


def name_device(verdict: Verdict, facts: TpmFacts, *, claim: Permit | None, asked: str | None) -> Name | Refusal:
    """What the device with that TPM is called.

    1. Whoever already said what it is called agrees with the others: its token or certificate (``claim``), its
       binding, the allow-list, its approval. Else somebody takes over another one's name: check 8 (9 at a renewal).
    2. If nobody did, the group's rule.

    Args:
        verdict: what was proved.
        facts: what is known about the TPM.
        claim: the permit that a token or a certificate gave; none if the TPM alone asks.
        asked: the name that the CSR asks for.
    """
    approval = facts.approval
    granted = approval.device if approval is not None and approval.state is State.GRANTED else None
    said = [
        claim.device if claim is not None else None,
        facts.device,
        facts.entry.device if facts.entry is not None else None,
        granted,
    ]
    names = {name for name in said if name is not None}
    if len(names) > 1:  # 1
        wanted = claim.device if claim is not None else facts.device
        return Refusal(Reason.TPM_OF_ANOTHER, wanted, _check(claim))
    if names:
        return Name(names.pop(), settled=True)
    if facts.group.naming is Naming.EK:  # 2
        return Name(ek_device_name(verdict.ek_hash), settled=True)
    return Name(asked, settled=False)


def judge_device(
    verdict: Verdict, name: Name, facts: TpmFacts, device: DeviceFacts, *, claim: Permit | None
) -> Permit | Refusal | None:
    """Whether the device may have a certificate on this evidence; none if an administrator has to say so first.

    1. A TPM that is only vouched for by the allow-list is still on it (check 1).
    2. The name is not bound to another TPM (check 8; at a renewal 9: the key moved). Nor was it released: a
       certificate from before that does not get it back.
    3. What was proved about this key before is the same now: TPM and Name, so that neither moved nor its attributes or
       policy changed (check 9).
    4. A device that ever had a key born in its TPM is not content with an imported one now (check 8).
    5. The TPM was not denied.
    6. A first certificate is approved, where the group's rule says so or the name is only asked for.

    The caller must have the verdict of `judge_evidence`, and use the name of `name_device`.
    """
    refusal = _contradiction(verdict, name, facts, device, claim)  # 1 to 4
    if refusal is not None:
        return refusal
    state = facts.approval.state if facts.approval is not None else None
    if state is State.DENIED:  # 5
        return Refusal(Reason.DENIED, name.device)
    if name.device is None or (_needs_approval(name, facts, claim) and state is not State.GRANTED):  # 6
        return None
    grounds = claim.grounds if claim is not None else f"tpm {verdict.ek_hash[:_NAME_DIGITS]}"
    return Permit(name.device, grounds, claim.token if claim is not None else None)


def _contradiction(
    verdict: Verdict, name: Name, facts: TpmFacts, device: DeviceFacts, claim: Permit | None
) -> Refusal | None:
    """What is known already and contradicts the evidence: rules 1 to 4 of `judge_device`."""
    if verdict.endorsed_by == ALLOW_LIST and facts.entry is None:  # 1
        return Refusal(Reason.EVIDENCE_REFUSED, name.device, 1)
    released = device.was_bound and device.holder is None and _check(claim) == RENEWAL
    if device.holder not in {None, verdict.ek_hash} or released:  # 2
        return Refusal(Reason.DEVICE_OF_ANOTHER, name.device, _check(claim))
    now = (verdict.ek_hash, verdict.key.name.hex())
    if any((before.ek_hash, before.key_name) != now for before in device.earlier):  # 3
        return Refusal(Reason.KEY_MOVED, name.device, RENEWAL)
    if device.was_fixed and verdict.residency is not Residency.FIXED:  # 4
        return Refusal(Reason.DOWNGRADE, name.device, BINDING)
    return None


def judge_downgrade(permit: Permit, *, was_bound: bool, renewal: bool) -> Refusal | None:
    """Check 8 for an applicant without evidence: whoever was seen with a TPM comes with one again (check 9: renewals).

    Args:
        permit: what the token or the certificate gave.
        was_bound: whether the device was ever bound to a TPM.
        renewal: whether it shows its certificate.
    """
    return Refusal(Reason.DOWNGRADE, permit.device, RENEWAL if renewal else BINDING) if was_bound else None


def _needs_approval(name: Name, facts: TpmFacts, claim: Permit | None) -> bool:
    if facts.device is not None:
        return False
    if not name.settled or facts.group.approval is ApprovalRule.ALWAYS:
        return True
    vouched = facts.entry is not None or claim is not None
    return facts.group.approval is ApprovalRule.UNLISTED and not vouched


def _check(claim: Permit | None) -> int:
    """A certificate shown makes it a renewal."""
    return RENEWAL if claim is not None and claim.token is None else BINDING
