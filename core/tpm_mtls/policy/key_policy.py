"""The policy of a key that somebody names: found, and held against the key itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import PolicyError
from tpm_mtls.files import read_capped
from tpm_mtls.key_reference import KeyFile, KeyReference
from tpm_mtls.policy.check import Verdict, judge
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.files import find_policy, find_signed_policies
from tpm_mtls.policy.observation import observe
from tpm_mtls.structures import parse_tss2_pem
from tpm_mtls.tcti import resolve_tcti

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpm_mtls.policy.document import Assertion, PolicyDocument
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm import Tpm


@dataclass(frozen=True)
class KeyPolicy:
    """A key and its policy.

    Attributes:
        public: the key's public area.
        document: its policy; none for a key without one.
    """

    public: PublicArea
    document: PolicyDocument | None


def read_public_area(reference: KeyReference, tcti: str | None) -> PublicArea:
    """The public area of the key that ``reference`` names; only for a handle the TPM is asked (one command).

    Raises:
        HandleNotFoundError: nothing is at that handle.
        PemError: the file is no ``TSS2 PRIVATE KEY``.
        StorageError: the file cannot be read.
    """
    if isinstance(reference, KeyFile):
        return parse_tss2_pem(read_capped(reference.path), str(reference.path)).public
    from tpm_mtls.tpm import open_tpm  # noqa: PLC0415 - a key in a file needs no TPM

    with open_tpm(resolve_tcti(tcti)) as tpm:
        return tpm.read_public(reference.handle).public


def key_policy(public: PublicArea, folders: Sequence[Path]) -> KeyPolicy:
    """The policy of the key with the public area ``public``, which lies in one of ``folders``.

    1. It is the policy of that key: its assertions lead to the key's authPolicy.

    Raises:
        PolicyError: it is missing, damaged, or not the key's (1).
    """
    if not public.policy:
        return KeyPolicy(public, None)
    document = find_policy(public.name, folders)
    if document is None:
        places = ", ".join(str(folder) for folder in folders)
        raise PolicyError(
            f"the policy of the key {public.name.hex()} is missing: nothing in {places}",
            hint="copy the key's .policy.json file there, or name the folder that has it: --state-dir",
        )
    check_policy(public, document)
    return KeyPolicy(public, document)


def check_policy(public: PublicArea, document: PolicyDocument) -> None:
    """Checks that ``document`` is the policy of the key with the public area ``public``: by Name and authPolicy.

    Raises:
        PolicyError: it is not.
    """
    if document.name != public.name.hex() or policy_digest(document.policy) != public.policy:
        raise PolicyError(
            f"the policy file of the key {public.name.hex()} is not the key's: it leads to another authPolicy",
            hint="restore the file that was written when the key was made",
        )


def require_policy(found: KeyPolicy) -> PolicyDocument:
    """The policy of ``found``.

    Raises:
        PolicyError: the key has none.
    """
    if found.document is None:
        raise PolicyError(
            "the key has no policy: it can be used whatever was booted",
            hint="make one that has: tpm-mtls keygen create --pcrs, or --policy-signer",
        )
    return found.document


def check_now(tpm: Tpm, policy: Sequence[Assertion], folders: Sequence[Path]) -> tuple[Verdict, list[PolicyError]]:
    """Whether ``policy`` holds now, with the signed policies in ``folders``; and which of them are damaged."""
    signed, damaged = find_signed_policies(folders)
    return judge(policy, observe(tpm, policy, signed), signed), damaged
