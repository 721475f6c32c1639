"""What ``tpm-mtls policy show`` and ``check`` say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tpm_mtls.files import read_capped
from tpm_mtls.policy.check import Outdated, PcrDiffers
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import LIMIT, PolicyAuthorize, parse_policy, parse_signed_policy
from tpm_mtls.policy.files import POLICY_SUFFIX, SIGNED_SUFFIX
from tpm_mtls.policy.states import parse_state
from tpm_mtls.policy.words import in_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tpm_mtls.errors import PolicyError
    from tpm_mtls.policy.check import Obstacle, Verdict
    from tpm_mtls.policy.document import Assertion, SignedPolicy
    from tpm_mtls.policy.files import FoundPolicy
    from tpm_mtls.policy.installation import Installed
    from tpm_mtls.policy.key_policy import KeyPolicy


def describe_file(path: Path) -> dict[str, Any]:
    """What the policy file, the signed policy or the recorded state at ``path`` says; nothing is verified.

    Raises:
        PolicyError: it is none of them.
        PemError, StorageError: it is oversized, or cannot be read.
    """
    data = read_capped(path, limit=LIMIT)
    if path.name.endswith(SIGNED_SUFFIX):
        signed = parse_signed_policy(data, str(path))
        return {"file": str(path)} | _signed_facts(signed) | _policy_facts(signed.policy)
    if path.name.endswith(POLICY_SUFFIX):
        document = parse_policy(data, str(path))
        return {"file": str(path), "name": document.name} | _policy_facts(document.policy)
    state = parse_state(data, str(path))
    return {"file": str(path), "description": state.description} | _policy_facts(state.pcrs)


def describe_key(key: str, found: KeyPolicy, signed: Sequence[FoundPolicy]) -> dict[str, Any]:
    """What must hold for ``key``, whose policy was ``found``, and which of the policies ``signed`` are for it."""
    facts = {"key": key, "name": found.public.name.hex()}
    if found.document is None:
        return facts | {"policy": "none: the key can be used whatever was booted", "digest": "", "assertions": []}
    trusted = {
        (each.signer.name, each.policy_ref) for each in found.document.policy if isinstance(each, PolicyAuthorize)
    }
    ours = [each for each in signed if (each.policy.signer, each.policy.policy_ref) in trusted]
    return facts | _policy_facts(found.document.policy) | {"signed": [_signed_line(each) for each in ours]}


def verdict_facts(key: str, found: KeyPolicy, verdict: Verdict, damaged: Sequence[PolicyError]) -> dict[str, Any]:
    """Whether ``key``, whose policy was ``found``, would work, and if not, why."""
    applies = verdict.applies
    return {
        "key": key,
        "works": verdict.holds,
        "policy": in_words(found.document.policy) if found.document else "none",
        "needs_authorization": verdict.needs_authorization,
        "signed_policy": str(applies.path) if applies else None,
        "version": applies.policy.version if applies else None,
        "obstacles": [_obstacle(each) for each in verdict.obstacles],
        "damaged": [str(error) for error in damaged],
    }


def lines(facts: Mapping[str, Any]) -> str:
    """``facts`` for a person: one a line."""
    return "\n".join(
        f"{name.replace('_', ' '):<20} {line}"
        for name, value in facts.items()
        if name != "assertions"
        for line in _values(value)
    )


def installed_lines(done: Installed, version: int) -> str:
    """What was done with the signed policy of that ``version``, for a person."""
    found = [f"version {version} {'installed' if done.changed else 'is installed already'}: {done.path}"]
    if done.older_retired:
        found.append(f"older versions are retired, for good: the counter stands at {version}")
    if not done.holds and done.older_retired:
        found.append(
            "it does not hold for what is running now: boot its image, or have this one signed with a higher version: "
            f"tpm-mtls policy sign --version {version + 1}"
        )
    elif not done.holds:
        found.append(
            "it does not hold for what is running now; after the next boot, install it again to retire older ones"
        )
    return "\n".join(found)


def _values(value: object) -> list[str]:
    if isinstance(value, list):
        return [str(each["text"] if isinstance(each, dict) else each) for each in value]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [] if value in {None, ""} else [str(value)]


def _obstacle(obstacle: Obstacle) -> dict[str, Any]:
    facts: dict[str, Any] = {"text": str(obstacle)}
    if isinstance(obstacle, PcrDiffers | Outdated):
        facts |= vars(obstacle)
    return facts


def _policy_facts(policy: Sequence[Assertion]) -> dict[str, Any]:
    return {
        "policy": in_words(policy),
        "digest": policy_digest(policy).hex(),
        "assertions": msgspec.to_builtins(policy, str_keys=True),
    }


def _signed_line(found: FoundPolicy) -> dict[str, Any]:
    signed = found.policy
    about = f" ({signed.description})" if signed.description else ""
    line = f"version {signed.version}{about}: {in_words(signed.policy)}"
    return {"text": line, "file": str(found.path)} | _signed_facts(signed)


def _signed_facts(signed: SignedPolicy) -> dict[str, Any]:
    return {
        "signer": signed.signer,
        "policy_ref": signed.policy_ref,
        "version": signed.version,
        "description": signed.description,
    }
