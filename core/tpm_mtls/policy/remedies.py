"""What leads out where a policy does not hold: hints whose commands can be typed as they stand. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tpm_mtls.policy.check import Outdated, signed_for
from tpm_mtls.policy.document import PolicyAuthorize, PolicyPcr, each_assertion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.check import Verdict
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy

_IF_RIGHT = "if what has been booted is right"


def is_signed(policy: Sequence[Assertion]) -> bool:
    """Whether ``policy`` leaves it to an operator what must hold."""
    return any(isinstance(each, PolicyAuthorize) for each in each_assertion(policy))


def selection(policy: Sequence[Assertion]) -> str:
    """Which PCRs ``policy`` is about, as options take them: ``sha256:0,2,7+sha1:0``; empty if it is about none."""
    banks: dict[str, set[int]] = {}
    for each in each_assertion(policy):
        if isinstance(each, PolicyPcr):
            banks.setdefault(each.bank, set()).update(each.pcrs)
    return "+".join(f"{bank}:{','.join(map(str, sorted(pcrs)))}" for bank, pcrs in banks.items())


def have_signed(pcrs: str = "", version: int | None = None, *, key: str | None = None) -> str:
    """How an operator's approval of what runs now gets onto the device.

    Args:
        pcrs: which PCRs, as `selection` has them; empty for the usual ones.
        version: the least that the new policy must have; none where that is not known.
        key: the key that it is for, as the user named it; none for the identity folder's.
    """
    wanted = f"--pcrs {pcrs} " if pcrs else ""
    number = "N" if version is None else version
    return (
        f"tpm-mtls policy record {wanted}--out state.json, tpm-mtls policy sign --signer OPERATOR.key.pem "
        f"--pcr-values state.json --version {number} --out new.signed-policy.json, "
        f"tpm-mtls policy install new.signed-policy.json{f' --key {shlex.quote(key)}' if key else ''}"
    )


def after_other_boot_signed(
    policy: Sequence[Assertion], verdict: Verdict, signed: Sequence[FoundPolicy], *, key: str | None = None
) -> str:
    """For who has booted something that no operator's policy is for.

    Args:
        policy: the key's or the sealed object's.
        verdict: why it does not hold.
        signed: the signed policies there are; none is verified, as one that is not right does no harm here.
        key: as `have_signed` takes it.
    """
    authorizes = [each for each in each_assertion(policy) if isinstance(each, PolicyAuthorize)]
    versions = [found.policy.version for each in authorizes for found in signed_for(each, signed)]
    counters = [each.counter or 0 for each in verdict.obstacles if isinstance(each, Outdated)]
    applies = verdict.applies.policy.policy if verdict.applies is not None else ()
    if not versions:
        return f"{_IF_RIGHT}, have it signed: {have_signed(selection(applies), key=key)}"
    return (
        f"boot the image of the newest policy; {_IF_RIGHT}, have it signed with a higher version: "
        f"{have_signed(selection(applies), max([*versions, *counters]) + 1, key=key)}"
    )


def after_other_boot_fixed(policy: Sequence[Assertion], enrolled: str | None) -> str:
    """For who has booted something else than what a key is bound to for good.

    Args:
        policy: the key's.
        enrolled: how the device enrolls anew (`tpm_mtls.identity.enroll_anew`); none for a key of no identity.
    """
    pcrs = f"--pcrs {selection(policy)}"
    if enrolled is None:
        return f"boot what it is bound to; {_IF_RIGHT}, make a new key: tpm-mtls keygen create {pcrs} --out new.key.pem"
    return f"boot what it is bound to; {_IF_RIGHT}, enroll anew: {enrolled} {pcrs}"


def after_other_boot_sealed(policy: Sequence[Assertion], what: str) -> str:
    """For who has booted something else than what the file ``what`` is sealed to for good."""
    name = shlex.quote(what)
    return (
        f"boot what it was sealed for; {_IF_RIGHT}, unseal it once more there and seal it here: "
        f"tpm-mtls seal --pcrs {selection(policy)} --in SECRET --out {name}.new"
    )
