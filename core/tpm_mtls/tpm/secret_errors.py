"""Errors of sealed data and NV secrets, in words that fit them, and with what differs where a policy does not hold."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tpm_mtls.errors import ForeignKeyError, PolicyRefusedError, UsageError
from tpm_mtls.policy.check import judge
from tpm_mtls.policy.observation import observe
from tpm_mtls.policy.ways import needs_authorization
from tpm_mtls.response_codes import describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.observation import Registers
    from tpm_mtls.tpm.policy_session import Proof


def check_authorization(policy: Sequence[Assertion], authorization: Secret | None) -> None:
    """Checks that an authorization value, if there is one beside a policy, will count.

    Raises:
        UsageError: the policy does not ask for it, or there is none and it does.
    """
    if policy and needs_authorization(policy) != (authorization is not None):
        what = "takes no authorization value" if authorization else "takes an authorization value, and there is none"
        raise UsageError(f"the policy {what}", hint="let the policy end with auth-value, or leave --auth out")


@contextmanager
def secret_errors(registers: Registers, doing: str, proof: Proof) -> Iterator[None]:
    """For uses of a secret: says what keeps its policy from holding, and what a foreign one is (a few commands then).

    Raises:
        PolicyRefusedError: with the differing PCRs in its message.
        ForeignKeyError: in words for sealed data.
    """
    try:
        yield
    except PolicyRefusedError as error:
        policy, signed = proof.policy, proof.signed_policies
        obstacles = judge(policy, observe(registers, policy, signed), signed).obstacles if policy else ()
        why = "; ".join(map(str, obstacles)) or "something changed meanwhile"
        raise PolicyRefusedError(
            f"cannot {doing}: its policy is not satisfied ({describe(error.rc)}): {why}",
            hint="boot what it was sealed for, or install a policy signed for what runs now: "
            "tpm-mtls policy install FILE; what changed: tpm-mtls pcr diff",
            rc=error.rc,
        ) from error
    except ForeignKeyError as error:
        raise ForeignKeyError(
            f"cannot {doing}: another TPM sealed it, or this one was cleared since, or it is damaged "
            f"({describe(error.rc)})",
            hint="use it on the device that sealed it; after a clear its content is lost: keep it until you know",
            rc=error.rc,
        ) from error
