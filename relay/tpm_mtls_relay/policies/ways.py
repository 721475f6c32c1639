"""What the folders say about a key's policy: the ways through it, checked before the TPM is asked."""

from __future__ import annotations

import hmac

from tpm_mtls_relay.errors import POLICY_MISSING, POLICY_NOT_THE_KEYS, POLICY_UNSIGNED, RelayError
from tpm_mtls_relay.policies.digest import name_algorithm, name_of, policy_digest
from tpm_mtls_relay.policies.fields import PolicyFileError
from tpm_mtls_relay.policies.paths import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.loaded.public_area import PublicArea
    from tpm_mtls_relay.policies.file import Authorize, SignedPolicy
    from tpm_mtls_relay.policies.folders import PolicyFolders
    from tpm_mtls_relay.policies.paths import Path


class Ways:
    """The ways through a key's policy.

    Attributes:
        paths: what to try, in this order.
        problem: what was wrong with a file that is none of them.
        state: of the folders when they were read.
    """

    __slots__ = ("paths", "problem", "state")

    def __init__(self, paths: list[Path], problem: RelayError | None, state: object) -> None:
        self.paths = paths
        self.problem = problem
        self.state = state

    def prefer(self, path: Path) -> None:
        """``path`` worked: it is tried first from now on."""
        self.paths.remove(path)
        self.paths.insert(0, path)


def read_ways(key: PublicArea, folders: PolicyFolders) -> Ways:
    """The ways through ``key``'s policy.

    1. There is a file for the key's Name.
    2. Its assertions lead to the key's authPolicy.
    3. If it asks for signed policies, the signer's Name is that of its public area.
    4. A signed policy's assertions lead to the digest that was signed; one that does not is left out.
    5. There is one, if one is needed.

    Signatures are the TPM's to verify.

    Raises:
        RelayError: POLICY_MISSING (1), POLICY_NOT_THE_KEYS (2), POLICY_DAMAGED (3, 4, or a file is no policy) or
            POLICY_UNSIGNED (5).
    """
    state = folders.state()
    policy = folders.key_policy(key.name)
    if policy is None:
        raise RelayError("the key has a policy, and no folder a file for it", POLICY_MISSING)  # 1
    algorithm = name_algorithm(key.name)
    if not hmac.compare_digest(policy_digest(policy, algorithm), key.policy):
        raise RelayError("the policy file does not lead to the key's policy", POLICY_NOT_THE_KEYS)  # 2
    problems: list[RelayError] = []

    def approved(authorize: Authorize) -> list[SignedPolicy]:
        if name_of(authorize.signer) != authorize.signer_name:
            raise PolicyFileError("the Name of the key that signs policies is not that of its public area")  # 3
        found, problem = folders.signed_policies(authorize)
        usable = [signed for signed in found if _leads_to_its_digest(signed, algorithm)]
        if len(usable) < len(found):
            problem = PolicyFileError("a signed policy does not lead to its digest")  # 4
        if problem:
            problems.append(problem)
        return usable

    ways = paths(policy, algorithm, approved)
    problem = problems[0] if problems else None
    if not ways:
        raise problem or RelayError("there is no signed policy for the key", POLICY_UNSIGNED)  # 5
    return Ways(ways, problem, state)


def _leads_to_its_digest(signed: SignedPolicy, algorithm: str) -> bool:
    try:
        return policy_digest(signed.policy, algorithm) == signed.digest
    except PolicyFileError:
        return False
