"""Whether a key is used through the TPM relay, and the policies that lie beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.files import read_capped
from tpm_mtls.policy.document import parse_policy
from tpm_mtls.policy.files import POLICY_SUFFIX
from tpm_mtls.policy.words import in_words
from tpm_mtls.relay import policy_folders, tpm_behind

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.identity import Identity
    from tpm_mtls.tls import IdentityContext

_LIMIT = 8  # policies shown; a device's identity folder has one or two
_SHORT = 12  # hexadecimal digits of a Name, enough to tell keys apart


@dataclass(frozen=True)
class RelayFacts:
    """For a TPM key.

    Attributes:
        used: whether its commands go through the relay.
        policies: Names of keys (hex) and their policies in words (or what is wrong with the file), from the key's
            folders; one of them may be its own.
    """

    used: bool
    policies: dict[str, str]

    @property
    def is_questionable(self) -> bool:
        """Whether the key cannot be used so, if one of the policies is its own."""
        return bool(self.policies) and not self.used

    def __str__(self) -> str:
        said = "; ".join(f"policy of {name[:_SHORT]}…: {words}" for name, words in self.policies.items())
        if self.is_questionable:
            return f"not used, but a key with a policy needs it ({said})"
        if self.used:
            return f"used, {said or 'without a policy'}"
        return "not used: no policy lies beside the key"


def relay_facts(context: IdentityContext, identity: Identity) -> RelayFacts | None:
    """The facts about ``context``, which was made from ``identity``; none for a software key."""
    own = context.own_key
    if own is None or own.tcti is None:
        return None
    folders = [folder for folder in policy_folders(identity.key, identity.certificate) if folder.is_dir()]
    paths = sorted(path for folder in folders for path in folder.glob(f"*{POLICY_SUFFIX}"))
    policies = {path.name.removesuffix(POLICY_SUFFIX): _words(path) for path in paths[:_LIMIT]}
    return RelayFacts(tpm_behind(own.tcti) != own.tcti, policies)


def _words(path: Path) -> str:
    try:
        return in_words(parse_policy(read_capped(path), str(path)).policy)
    except TpmMtlsError as error:
        return str(error)
