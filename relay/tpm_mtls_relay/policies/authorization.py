"""The layer that uses keys by their policies, for programs that know only passwords.

OpenSSL's tpm2 provider authorizes each TPM2_Sign with a password session. For a key whose public area has a policy
and no userWithAuth the TPM refuses that; here a policy session takes the password's place, for this one command.
"""

from __future__ import annotations

from tpm_mtls_relay.loaded.objects import key_at
from tpm_mtls_relay.messages.commands import SIGN
from tpm_mtls_relay.messages.wire import code_of
from tpm_mtls_relay.policies.request import sign_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.loaded.objects import Objects
    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.policies.use import PolicyUse


class PolicyAuthorization:
    """Signs with keys whose policy only opens them; everything else goes through.

    Args:
        below: the next layer.
        objects: what is known of the keys in the TPM.
        folders: where policies are.
    """

    def __init__(self, below: Exchange, objects: Objects, folders: list[str]) -> None:
        self._below = below
        self._objects = objects
        self._folders = folders
        self._use: PolicyUse | None = None

    def __call__(self, command: bytes) -> bytes:
        """The response.

        Raises:
            RelayError: with one of the codes POLICY_… if the key has a policy that is not to be satisfied, or with the
                TPM's own response code.
        """
        request = sign_request(command) if code_of(command) == SIGN else None
        key = key_at(request.key, self._objects, self._below) if request else None
        if request is None or key is None or not key.needs_policy:
            return self._below(command)
        if self._use is None:
            from tpm_mtls_relay.policies.use import PolicyUse  # noqa: PLC0415 - 8 ms, and most keys have no policy

            self._use = PolicyUse(self._below, self._folders)
        return self._use.sign(key, request)
