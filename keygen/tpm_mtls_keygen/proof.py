"""An exchange with the CA that ends in a certificate request with evidence: nonce, activation, certification, CSR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.freshness import NONCE_LENGTH, TYPE_TPM, NonceRequest
from tpm_mtls_keygen.csr import build_csr
from tpm_mtls_keygen.evidence import activation_request, collect_evidence, read_endorsement
from tpm_mtls_keygen.patience import Later

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tpm_mtls.attestation_key import AttestationKey
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_keygen.est_client import EstExchange
    from tpm_mtls_keygen.evidence import Endorsement
    from tpm_mtls_keygen.keys import TpmKey


@dataclass(frozen=True)
class Proof:
    """How the TPM vouches for the device's TLS keys.

    Attributes:
        endorsement: the endorsement key and its certificate.
        attestation_key: the attestation key.
    """

    endorsement: Endorsement
    attestation_key: AttestationKey

    @classmethod
    def prepare(cls, tpm: Tpm, attestation_key: AttestationKey, endorsement: Endorsement | None = None) -> Proof:
        """With the endorsement key of ``attestation_key``: as the TPM describes it, unless that is known already.

        Raises:
            EvidenceError: as `read_endorsement`.
        """
        return cls(endorsement or read_endorsement(tpm, attestation_key.ek_template), attestation_key)

    @property
    def advice(self) -> str:
        """What helps where the CA refuses it; the CA itself does not say."""
        allow = f"tpm-mtls pki allow add --ek-hash {self.endorsement.hash}"
        if self.endorsement.certificate is None:
            return f"this TPM has no EK certificate: the CA must know it by its EK hash: {allow}; or use --token-file"
        return (
            "the CA's audit log says why; it must know the TPM's maker (tpm-mtls pki ek-roots add), or this TPM by its "
            f"EK hash: {allow}"
        )

    def request(
        self,
        tpm: Tpm,
        exchange: EstExchange,
        load_key: Callable[[], TpmKey],
        *,
        common_name: str | None,
        now: datetime,
    ) -> bytes | Later:
        """A certificate request (DER) that ``exchange`` is to send next; nothing stays loaded in the TPM.

        Args:
            tpm: an open TPM.
            exchange: with the CA.
            load_key: loads the TLS key, after the CA has answered.
            common_name: as in `build_csr`.
            now: the present time.

        Raises:
            EvidenceError, EvidenceRefusedError: as `collect_evidence`.
            RequestRefusedError, …: as `EstExchange.nonce`.
        """
        wanted = activation_request(self.endorsement, self.attestation_key)
        response = exchange.nonce(NonceRequest(NONCE_LENGTH, TYPE_TPM, wanted), now=now)
        if isinstance(response, Later):
            return response
        key = load_key()
        with key.loaded:
            evidence = collect_evidence(tpm, key, self.attestation_key, response)
            return build_csr(tpm, key, common_name=common_name, evidence=evidence)
