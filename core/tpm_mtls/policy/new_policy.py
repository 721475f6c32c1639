"""Policies for keys and sealed objects that are about to be made."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import PolicyRefusedError, UsageError
from tpm_mtls.files import remove_file
from tpm_mtls.policy.counters import DEFAULT_COUNTER, parse_counter
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyAuthorize, PolicyAuthValue, PolicyDocument, Signer
from tpm_mtls.policy.files import write_policy
from tpm_mtls.policy.key_policy import check_now
from tpm_mtls.policy.signing import check_reference, read_signer
from tpm_mtls.policy.states import MachineState, any_of, parse_selection, read_state, read_state_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.tpm import Tpm

_NOT_SATISFIED = 0x99D  # TPM_RC_POLICY_FAIL for the first session: what the TPM would answer


@dataclass(frozen=True)
class PolicyWish:
    """What must hold for a new object to be used: a state of the machine, or whatever an operator signs.

    Attributes:
        pcrs: the present state, if that is one of them: `parse_selection`.
        states: recorded ones.
        signer: the operator; none where the states are fixed for good.
        policy_ref: for what the signed policies must be meant.
        counter: NV index of the counter that retires signed policies; none for none.
    """

    pcrs: str | None = None
    states: tuple[MachineState, ...] = ()
    signer: Signer | None = None
    policy_ref: bytes = b""
    counter: int | None = DEFAULT_COUNTER


@dataclass(frozen=True)
class NewPolicy:
    """A policy for an object that has no Name yet.

    Attributes:
        folder: where its file goes.
        assertions: what must hold.
        counter: where the counter stands that it needs; none if it needs none.
    """

    folder: Path
    assertions: tuple[Assertion, ...]
    counter: int | None = None

    @property
    def digest(self) -> bytes:
        """The object's authPolicy."""
        return policy_digest(self.assertions)

    @contextmanager
    def written(self, name: bytes) -> Iterator[None]:
        """Writes it for the object with the Name ``name``; removes it again if the block, which keeps that, fails.

        Raises:
            StorageError: it cannot be written.
        """
        path = write_policy(self.folder, PolicyDocument(name=name.hex(), policy=self.assertions))
        try:
            yield
        except BaseException:
            remove_file(path)
            raise


def read_wish(
    *,
    pcrs: str | None,
    pcr_values: tuple[Path, ...],
    policy_signer: Path | None,
    policy_ref: str | None,
    counter: str | None,
) -> PolicyWish | None:
    """What the options of these names say; none if they want no policy. No TPM is asked.

    Raises:
        UsageError: they contradict each other, or one is malformed.
        CredentialError: a file is not what it should be.
        StorageError: a file cannot be read.
    """
    fixed = pcrs is not None or bool(pcr_values)
    if policy_signer is None:
        if policy_ref is not None or counter is not None:
            raise UsageError("who signs the policies?", hint="--policy-ref and --counter go with --policy-signer")
        if pcrs is not None:
            parse_selection(pcrs)
        return PolicyWish(pcrs, tuple(map(read_state_file, pcr_values))) if fixed else None
    if fixed:
        raise UsageError(
            "the policy is either fixed or signed",
            hint="with --policy-signer the operator says which PCRs: tpm-mtls policy sign --pcrs, or --pcr-values",
        )
    index = DEFAULT_COUNTER if counter is None else parse_counter(counter)
    reference = check_reference((policy_ref or "").encode())
    return PolicyWish(signer=read_signer(policy_signer), policy_ref=reference, counter=index)


def make_policy(tpm: Tpm, wish: PolicyWish, folder: Path, *, with_authorization: bool, now: datetime) -> NewPolicy:
    """The policy that ``wish`` wants (one command for each eight PCRs of the present state).

    The counter is made if it is not there.

    Raises:
        AlgorithmUnsupportedError: the TPM does not keep a PCR bank.
        HandleOccupiedError: something else is at the counter's NV index.
        AuthorizationError: the owner hierarchy, which makes counters, has another authorization value.
    """
    on_top = (PolicyAuthValue(),) if with_authorization else ()
    if wish.signer is None:
        present = [read_state(tpm.pcrs, wish.pcrs, now=now)] if wish.pcrs is not None else []
        return NewPolicy(folder, (*any_of([*present, *wish.states]), *on_top))
    value = tpm.counters.make(wish.counter) if wish.counter is not None else None
    authorize = PolicyAuthorize(signer=wish.signer, policy_ref=wish.policy_ref.hex())
    return NewPolicy(folder, (authorize, *on_top), value)


def check_usable(tpm: Tpm, policy: NewPolicy) -> None:
    """Checks that an object with ``policy`` could be used now, before it is made to be used at once.

    Raises:
        PolicyRefusedError: it could not.
    """
    verdict, _ = check_now(tpm, policy.assertions, [policy.folder])
    if not verdict.holds:
        raise PolicyRefusedError(
            f"a key with this policy could not be used now: {verdict.obstacles[0]}",
            hint=f"put a policy that is signed for the present state into {policy.folder}: tpm-mtls policy sign; "
            "or let --pcrs say the present state",
            rc=_NOT_SATISFIED,
        )
