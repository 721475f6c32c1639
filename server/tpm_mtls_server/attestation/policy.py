"""Check 9: the machine booted what its operator wants it to boot. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

from tpm_mtls.attestation.quote_checks import BANK, SIGNED_PCRS
from tpm_mtls.errors import CredentialError
from tpm_mtls.ima import IMA_PCR
from tpm_mtls.policy.check import PcrDiffers, Present, Unusable, judge, wanted
from tpm_mtls.policy.signing import verify_signed_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tpm_mtls.policy.check import Obstacle
    from tpm_mtls.policy.document import Assertion, SignedPolicy, Signer
    from tpm_mtls.policy.states import MachineState
    from tpm_mtls_server.attestation.boot_state import BootState

ALL_PCRS: Final = tuple(SIGNED_PCRS)


@dataclass(frozen=True)
class Learn:
    """The first quote that passes everything else becomes the baseline; later ones are held against it.

    Attributes:
        pcrs: which PCRs are compared.
    """

    pcrs: tuple[int, ...] = ALL_PCRS


@dataclass(frozen=True)
class Approve:
    """The baseline is what an operator approved; without one nothing passes.

    Attributes:
        pcrs: which PCRs are compared.
    """

    pcrs: tuple[int, ...] = ALL_PCRS


@dataclass(frozen=True)
class Values:
    """The machine is in one of these states.

    Attributes:
        states: as ``tpm-mtls policy record`` writes them.
    """

    states: tuple[MachineState, ...]


@dataclass(frozen=True)
class Signed:
    """The machine is in a state that an operator signed, as ``tpm-mtls policy sign`` writes it.

    Attributes:
        signers: whose signatures count.
        policies: the signed policies. A counter in them is the device's affair, and counts as not passed: here, a
            policy that is outdated is taken out.
    """

    signers: tuple[Signer, ...]
    policies: tuple[SignedPolicy, ...]


Policy: TypeAlias = Learn | Approve | Values | Signed


@dataclass(frozen=True)
class Finding:
    """What check 9 found.

    Attributes:
        obstacles: why the policy does not hold; empty if it does. Of several accepted states those of the one that is
            nearest.
        standard: what the machine was held against, for people.
        learns: whether this is to become the baseline.
        waits: whether it only waits for an operator's approval.
    """

    obstacles: tuple[Obstacle, ...]
    standard: str
    learns: bool = False
    waits: bool = False

    @property
    def holds(self) -> bool:
        """Whether the policy holds."""
        return not self.obstacles and not self.waits

    @property
    def differs(self) -> tuple[PcrDiffers, ...]:
        """The PCRs that have other values."""
        return tuple(each for each in self.obstacles if isinstance(each, PcrDiffers))


def judge_policy(
    policy: Policy, pcrs: Mapping[str, Mapping[int, bytes]], baseline: BootState | None, *, ima: bool
) -> Finding:
    """Check 9: whether ``policy`` holds.

    Args:
        policy: of the device, or its group.
        pcrs: the signed PCR values, by bank and number. The caller must have verified them (check 6).
        baseline: what was learned or approved; none if nothing yet.
        ima: whether an IMA list leads to PCR 10, which then has a value of its own at each boot, and is not compared
            with a baseline's (check 8).
    """
    match policy:
        case Learn() | Approve():
            if baseline is not None:
                return _judge_baseline(policy.pcrs, pcrs[BANK], baseline, ima=ima)
            learns = isinstance(policy, Learn)
            return Finding((), "nothing: there is no baseline yet", learns=learns, waits=not learns)
        case Values():
            return _judge_states(policy, pcrs)
        case Signed():
            return _judge_signed(policy, pcrs)
        case _:
            assert_never(policy)


def _judge_baseline(compared: Sequence[int], values: Mapping[int, bytes], baseline: BootState, *, ima: bool) -> Finding:
    obstacles: list[Obstacle] = []
    for pcr in compared:
        if ima and pcr == IMA_PCR:
            continue
        then, now = baseline.values.get(pcr), values.get(pcr)
        if then is None or now is None:
            obstacles.append(Unusable(f"PCR {pcr} is not in the {'baseline' if now is not None else 'quote'}"))
        elif then != now:
            obstacles.append(PcrDiffers(BANK, pcr, then.hex(), now.hex(), baseline.recorded))
    return Finding(tuple(obstacles), f"the baseline of {baseline.recorded}")


def _judge_states(policy: Values, pcrs: Mapping[str, Mapping[int, bytes]]) -> Finding:
    found = [Finding(_judge(each.pcrs, pcrs), _state_name(each)) for each in policy.states]
    return _nearest(found, "there are no values to hold the quote against")


def _judge_signed(policy: Signed, pcrs: Mapping[str, Mapping[int, bytes]]) -> Finding:
    signers = {each.name: each for each in policy.signers}
    found = []
    for each in policy.policies:
        name = f"the signed policy {each.description!r}, version {each.version}"
        signer = signers.get(each.signer)
        if signer is None:
            found.append(Finding((Unusable(f"{name} is signed by a key that does not count: {each.signer}"),), name))
            continue
        try:
            verify_signed_policy(each, signer, name=name)
        except CredentialError as error:
            found.append(Finding((Unusable(str(error)),), name))
            continue
        found.append(Finding(_judge(each.policy, pcrs), name))
    return _nearest(found, "there are no signed policies to hold the quote against")


def _judge(assertions: Sequence[Assertion], pcrs: Mapping[str, Mapping[int, bytes]]) -> tuple[Obstacle, ...]:
    needed, counters = wanted(assertions, ())
    missing = [
        Unusable(f"PCR {pcr} of the bank {bank} is wanted, but was not quoted")
        for bank, numbers in needed.items()
        for pcr in sorted(numbers - pcrs.get(bank, {}).keys())
    ]
    return tuple(missing) or judge(assertions, Present(pcrs, dict.fromkeys(counters, 0)), ()).obstacles


def _nearest(found: Sequence[Finding], nothing: str) -> Finding:
    """The one that lacks the least; one that was judged rather than one that could not be."""
    if not found:
        return Finding((Unusable(nothing),), "nothing")
    return min(found, key=lambda each: (bool(each.obstacles) and not each.differs, len(each.obstacles)))


def _state_name(state: MachineState) -> str:
    recorded = state.pcrs[0].recorded if state.pcrs else "nobody knows when"
    return f"the values {state.description!r} of {recorded}" if state.description else f"the values of {recorded}"
