"""What an enrolled device is asked for and does not do: the key that it has keeps the policy that it was made with."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tpm_mtls.errors import CredentialError, StorageError
from tpm_mtls.identity import enroll_anew
from tpm_mtls.policy.document import PolicyAuthorize, PolicyOr, PolicyPcr
from tpm_mtls.policy.files import find_policy
from tpm_mtls.policy.remedies import is_signed, selection
from tpm_mtls.policy.states import parse_selection
from tpm_mtls.policy.words import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpm_mtls.identity import IdentityRecord
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.policy.new_policy import PolicyWish


def ignored_policy(folder: Path, record: IdentityRecord, wish: PolicyWish | None) -> str | None:
    """How the policy of the identity's key differs from ``wish``; none where it does not, or nothing was wished for.

    The present values of the PCRs that ``--pcrs`` names do not matter: a first boot runs at every boot, and ``policy
    check`` says whether the key would work.

    Args:
        folder: the identity folder.
        record: its identity.
        wish: what the options say.
    """
    if wish is None:
        return None
    try:
        document = find_policy(bytes.fromhex(record.key_name), [folder])
    except (CredentialError, StorageError) as error:
        return f"whether the key of {record.device} has the policy that was asked for cannot be told: {error}"
    policy = document.policy if document is not None else ()
    if not policy:
        return f"the key of {record.device} has no policy, and gets none"
    why = _signer_differs(policy, wish) if wish.signer is not None else _states_differ(policy, wish)
    return f"the key of {record.device} keeps its policy: {why}" if why else None


def remedy(folder: Path, record: IdentityRecord, options: Sequence[tuple[str, str]]) -> str:
    """What to do about it.

    Args:
        folder: the identity folder.
        record: its identity.
        options: those by which another policy was asked for, and their values.
    """
    names = " and ".join(dict.fromkeys(name for name, _ in options))
    given = shlex.join(part for option in options for part in option)
    return (
        f"to keep it leave {names} out; for another policy give the identity up: {enroll_anew(folder, record)} {given}"
    )


def _signer_differs(policy: Sequence[Assertion], wish: PolicyWish) -> str | None:
    found = [each for each in policy if isinstance(each, PolicyAuthorize)]
    if not found or wish.signer is None:
        return f"{in_words(policy)}, and not what an operator signs"
    wanted = PolicyAuthorize(signer=wish.signer, policy_ref=wish.policy_ref.hex())
    return None if wanted in found else f"{in_words(found)}, and not {in_words([wanted])}"


def _states_differ(policy: Sequence[Assertion], wish: PolicyWish) -> str | None:
    if is_signed(policy):
        return f"{in_words(policy)}, and not what the PCRs are"
    if wish.states:
        known = {_digests(branch) for branch in _branches(policy)}
        missing = [state.pcrs for state in wish.states if _digests(state.pcrs) not in known]
        return f"{in_words(policy)}, and not {in_words(missing[0])}" if missing else None
    if wish.pcrs is None or parse_selection(wish.pcrs) == parse_selection(selection(policy)):
        return None
    return f"{in_words(policy)}, and not {wish.pcrs}"


def _branches(policy: Sequence[Assertion]) -> list[Sequence[Assertion]]:
    return [branch for each in policy if isinstance(each, PolicyOr) for branch in each.branches] or [policy]


def _digests(policy: Sequence[Assertion]) -> frozenset[tuple[str, str]]:
    return frozenset((each.bank, each.digest) for each in policy if isinstance(each, PolicyPcr))
