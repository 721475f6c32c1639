"""Whether a policy holds now, and if not, why: a comparison of what it says with what a TPM says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, assert_never

from tpm_mtls.errors import CredentialError
from tpm_mtls.policy.document import PolicyAuthorize, PolicyAuthValue, PolicyNv, PolicyOr, PolicyPcr, each_assertion
from tpm_mtls.policy.signing import verify_signed_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.files import FoundPolicy


@dataclass(frozen=True)
class Present:
    """What a TPM says.

    Attributes:
        pcrs: values by bank and number; a bank that it does not keep is missing.
        counters: where counters stand, by NV index; none for one that is not there.
    """

    pcrs: Mapping[str, Mapping[int, bytes]]
    counters: Mapping[int, int | None]


@dataclass(frozen=True)
class PcrDiffers:
    """A PCR has another value than when it was recorded: something else was booted.

    Attributes:
        bank: ``sha256``, …
        pcr: its number.
        then: the recorded value, hex.
        now: the present one; none where the TPM does not keep the bank.
        recorded: when the value was recorded, ISO 8601.
    """

    bank: str
    pcr: int
    then: str
    now: str | None
    recorded: str

    def __str__(self) -> str:
        """In words."""
        if self.now is None:
            return f"PCR {self.pcr}: this TPM keeps no bank {self.bank}"
        return f"PCR {self.pcr} ({self.bank}) differs: {self.then} on {self.recorded}, {self.now} now"


@dataclass(frozen=True)
class Outdated:
    """The counter is beyond a signed policy's version, or is not there.

    Attributes:
        index: NV index.
        version: at most which it may have.
        counter: where it stands; none if it is not there.
    """

    index: int
    version: int
    counter: int | None

    def __str__(self) -> str:
        """In words."""
        if self.counter is None:
            return f"the counter {self.index:#010x} is not in this TPM"
        return f"version {self.version} is outdated: the counter {self.index:#010x} stands at {self.counter}"


@dataclass(frozen=True)
class Unusable:
    """A signed policy that does not count, or that there is none."""

    reason: str

    def __str__(self) -> str:
        """In words."""
        return self.reason


Obstacle: TypeAlias = PcrDiffers | Outdated | Unusable


@dataclass(frozen=True)
class Verdict:
    """Whether a policy holds.

    Attributes:
        obstacles: why it does not; empty if it does. Of several ways those of the one that lacks the least.
        needs_authorization: whether the authorization value is needed, too.
        applies: the signed policy that holds, or lacks the least.
    """

    obstacles: tuple[Obstacle, ...] = ()
    needs_authorization: bool = False
    applies: FoundPolicy | None = None

    @property
    def holds(self) -> bool:
        """Whether it holds now."""
        return not self.obstacles


def judge(policy: Sequence[Assertion], present: Present, signed: Sequence[FoundPolicy]) -> Verdict:
    """Whether ``policy`` holds.

    Args:
        policy: a key's or a sealed object's.
        present: what the TPM says about the PCRs and counters that `wanted` names.
        signed: the signed policies there are, the newest first. Their signatures are verified here.
    """
    obstacles: list[Obstacle] = []
    needs_authorization = False
    applies: FoundPolicy | None = None
    for assertion in policy:
        verdict = _judge(assertion, present, signed)
        obstacles += verdict.obstacles
        needs_authorization |= verdict.needs_authorization
        applies = applies or verdict.applies
    return Verdict(tuple(obstacles), needs_authorization, applies)


def wanted(policy: Sequence[Assertion], signed: Sequence[FoundPolicy]) -> tuple[dict[str, set[int]], set[int]]:
    """Which PCRs (by bank) and which counters `judge` has to know."""
    pcrs: dict[str, set[int]] = {}
    counters: set[int] = set()
    approved = [
        each
        for assertion in each_assertion(policy)
        if isinstance(assertion, PolicyAuthorize)
        for found in signed_for(assertion, signed)
        for each in found.policy.policy
    ]
    for assertion in each_assertion([*policy, *approved]):
        if isinstance(assertion, PolicyPcr):
            pcrs.setdefault(assertion.bank, set()).update(assertion.pcrs)
        elif isinstance(assertion, PolicyNv):
            counters.add(int(assertion.index, 16))
    return pcrs, counters


def signed_for(authorize: PolicyAuthorize, signed: Sequence[FoundPolicy]) -> list[FoundPolicy]:
    """Those of ``signed`` that say they are for ``authorize``; nothing is verified."""
    ours = (authorize.signer.name, authorize.policy_ref)
    return [each for each in signed if (each.policy.signer, each.policy.policy_ref) == ours]


def _judge(assertion: Assertion, present: Present, signed: Sequence[FoundPolicy]) -> Verdict:
    match assertion:
        case PolicyPcr():
            return Verdict(tuple(_differences(assertion, present)))
        case PolicyAuthValue():
            return Verdict(needs_authorization=True)
        case PolicyNv():
            index = int(assertion.index, 16)
            counter = present.counters.get(index)
            fits = counter is not None and counter <= assertion.version
            return Verdict() if fits else Verdict((Outdated(index, assertion.version, counter),))
        case PolicyOr():
            return _best([judge(branch, present, signed) for branch in assertion.branches])
        case PolicyAuthorize():
            return _judge_signed(assertion, present, signed)
        case _:
            assert_never(assertion)


def _judge_signed(authorize: PolicyAuthorize, present: Present, signed: Sequence[FoundPolicy]) -> Verdict:
    verdicts = []
    for found in signed_for(authorize, signed):
        try:
            verify_signed_policy(found.policy, authorize.signer, name=str(found.path))
        except CredentialError as error:
            verdicts.append(Verdict((Unusable(str(error)),), applies=found))
            continue
        held = judge(found.policy.policy, present, ())
        verdicts.append(Verdict(held.obstacles, held.needs_authorization, found))
    if not verdicts:
        return Verdict((Unusable(f"there is no policy signed by {authorize.signer.name}"),))
    return _best(verdicts)


def _best(verdicts: Sequence[Verdict]) -> Verdict:
    return min(verdicts, key=lambda verdict: len(verdict.obstacles))


def _differences(assertion: PolicyPcr, present: Present) -> Iterator[PcrDiffers]:
    values = present.pcrs.get(assertion.bank)
    for pcr in assertion.pcrs:
        now = values[pcr].hex() if values is not None else None
        if now != assertion.values[pcr]:
            yield PcrDiffers(assertion.bank, pcr, assertion.values[pcr], now, assertion.recorded)
