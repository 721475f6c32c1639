"""Signatures with a loaded key: TPM2_Sign (TPM 2.0 Library part 3 rev 1.59, 20.2), its policy proved before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.types import TPMS_SCHEME_HASH, TPMT_SIG_SCHEME, TPMU_SIG_SCHEME

from tpm_mtls.tpm.policy_session import PolicySessions
from tpm_mtls.tpm.sessions import UnsaltedSessions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpm_mtls.tpm.policy_session import Proof
    from tpm_mtls.tpm.resources import Resources
    from tpm_mtls.tpm.values import LoadedKey

_HASHES: Final = {"sha256": TPM2_ALG.SHA256, "sha384": TPM2_ALG.SHA384, "sha512": TPM2_ALG.SHA512}
_NOTHING_SECRET: Final = 0


class Signing:
    """Signatures of an open TPM; `Tpm.sign` is the one to use."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._context = resources.context
        # a signature carries no secret, and must not depend on the storage root key, to which others are salted
        self._policies = PolicySessions(resources, UnsaltedSessions(resources))

    def sign(self, key: LoadedKey, digest: bytes, *, hash_name: str, proof: Proof | None) -> bytes:
        """As `Tpm.sign`."""
        scheme = TPMT_SIG_SCHEME(
            scheme=TPM2_ALG.ECDSA if key.public.algorithm.startswith("ecc-") else TPM2_ALG.RSASSA,
            details=TPMU_SIG_SCHEME(any=TPMS_SCHEME_HASH(hashAlg=_HASHES[hash_name])),
        )

        def send(sessions: Mapping[str, Any]) -> bytes:
            with self._resources.command("sign"):
                return bytes(self._context.sign(ESYS_TR(key.resource), digest, scheme, None, **sessions))

        if proof is None:
            return send({})
        return self._policies.use(proof, _NOTHING_SECRET, send)
