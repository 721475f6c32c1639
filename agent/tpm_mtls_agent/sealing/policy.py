"""Policies of sealed data and NV indices: the one that is wished for, and the one that somebody remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import PolicyError, PolicyRefusedError, UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import (
    LIMIT,
    PolicyAuthorize,
    PolicyAuthValue,
    each_assertion,
    parse_policy,
    parse_signed_policy,
)
from tpm_mtls.policy.files import FoundPolicy, find_signed_policies
from tpm_mtls.policy.new_policy import PolicyWish, make_policy
from tpm_mtls.policy.states import any_of, read_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.tpm import Tpm

NOT_SATISFIED: Final = 0x99D
"""TPM_RC_POLICY_FAIL for the first session: what the TPM would answer (part 2, 6.6)."""

DIGEST_SIZE: Final = 32


@dataclass(frozen=True)
class SealPolicy:
    """What must hold, as the options said it.

    Attributes:
        wish: of PCRs or of an operator; none for none.
        file: of another object, whose policy is taken; none for none.
    """

    wish: PolicyWish | None = None
    file: tuple[Assertion, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything must hold."""
        return self.wish is not None or bool(self.file)


def read_policy_file(path: Path) -> tuple[Assertion, ...]:
    """The assertions in the policy file ``path``, whatever object it is of.

    Raises:
        PolicyError: it is none.
        PemError, StorageError: it is oversized, or cannot be read.
    """
    data = read_capped(path, limit=LIMIT)
    if len(data) == DIGEST_SIZE:
        raise PolicyError(
            f"{path} is only a policy's digest, which does not tell how to satisfy it",
            hint="name what must hold: --pcrs, or --pcr-values for what tpm-mtls policy record wrote",
        )
    return parse_policy(data, str(path)).policy


def chosen(wish: PolicyWish | None, file: Path | None) -> SealPolicy:
    """What ``wish`` and ``file`` say.

    Raises:
        UsageError: both say something.
        PolicyError, PemError, StorageError: as `read_policy_file`.
    """
    if wish is not None and file is not None:
        raise UsageError("there are two policies", hint="with --policy FILE, leave --pcrs and --policy-signer out")
    return SealPolicy(wish, read_policy_file(file) if file is not None else ())


def new_policy(
    tpm: Tpm, policy: SealPolicy, folder: Path, *, with_authorization: bool, now: datetime
) -> tuple[tuple[Assertion, ...], int | None]:
    """What must hold for a new object, and where the counter stands that retires signed policies, if there is one.

    Raises:
        as `tpm_mtls.policy.new_policy.make_policy`.
    """
    if policy.wish is not None:
        made = make_policy(tpm, policy.wish, folder, with_authorization=with_authorization, now=now)
        return made.assertions, made.counter
    if policy.file and with_authorization and not _asks_for_value(policy.file):
        return (*policy.file, PolicyAuthValue()), None
    return policy.file, None


def remembered_policy(tpm: Tpm, policy: SealPolicy, digest: bytes, *, now: datetime) -> tuple[Assertion, ...]:
    """The policy of an object that has the authPolicy ``digest`` and nothing that says what leads to it.

    Raises:
        PolicyError: ``policy`` leads elsewhere, or is empty.
        PolicyRefusedError: it is about the present PCRs, which lead elsewhere: they changed, or were not the ones.
    """
    if not policy:
        raise PolicyError(
            "what was sealed has a policy, and nothing says which",
            hint="say what it was: --pcrs, --policy-signer or --policy FILE",
        )
    assertions = policy.file
    if policy.wish is not None and policy.wish.signer is not None:
        assertions = (PolicyAuthorize(signer=policy.wish.signer, policy_ref=policy.wish.policy_ref.hex()),)
    elif policy.wish is not None:
        present = [read_state(tpm.pcrs, policy.wish.pcrs, now=now)] if policy.wish.pcrs is not None else []
        assertions = any_of([*present, *policy.wish.states])
    for each in (assertions, (*assertions, PolicyAuthValue())):
        if policy_digest(each) == digest:
            return each
    if policy.wish is not None and policy.wish.pcrs is not None:
        raise PolicyRefusedError(
            f"the PCRs {policy.wish.pcrs} have other values now than when it was sealed (TPM_RC_POLICY_FAIL, "
            f"{NOT_SATISFIED:#05x}), or it is bound to others",
            hint="boot what it was sealed for; or give the policy as it was: --pcr-values, --policy FILE",
            rc=NOT_SATISFIED,
        )
    raise PolicyError(
        f"the policy that was given is not its own, whose digest is {digest.hex()}", hint="give the right one"
    )


def signed_policies(policy: Sequence[Assertion], files: Sequence[Path], folders: Sequence[Path]) -> list[FoundPolicy]:
    """Signed policies for ``policy``: those in ``files`` first, then those in ``folders``; none where it asks for none.

    No signature is verified. What lies in ``folders`` and is damaged is not counted.

    Raises:
        PolicyError: one of ``files`` is none.
        PemError, StorageError: one is oversized, or cannot be read.
    """
    named = [FoundPolicy(path, parse_signed_policy(read_capped(path, limit=LIMIT), str(path))) for path in files]
    if not any(isinstance(each, PolicyAuthorize) for each in each_assertion(policy)):
        return named
    return [*named, *find_signed_policies(folders)[0]]


def _asks_for_value(policy: Sequence[Assertion]) -> bool:
    return any(isinstance(each, PolicyAuthValue) for each in each_assertion(policy))
