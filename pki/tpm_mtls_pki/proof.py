"""What an applicant's evidence proved, in the form in which certificates are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import load_der_public_key

from tpm_mtls.device_identity import POLICY_FIXED, POLICY_RESIDENT, POLICY_RESTRICTED, TpmIdentity
from tpm_mtls.evidence_checks import Residency, numbered
from tpm_mtls_pki.csr import check_public_key
from tpm_mtls_pki.evidence import judge_evidence
from tpm_mtls_pki.profiles import Subject

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls.evidence import Evidence
    from tpm_mtls_pki.evidence import Challenge, Terms, Verdict
    from tpm_mtls_pki.profiles import LeafKey


@dataclass(frozen=True)
class Proof:
    """Evidence that passed checks 1 to 7.

    Attributes:
        verdict: what it proved.
        ak: the attestation key, if a credential was activated for it: only then it gets a certificate, too. One that
            its certificate vouched for does not prolong that by itself.
    """

    verdict: Verdict
    ak: LeafKey | None

    def device(self, name: str) -> Subject:
        """The subject of the TLS key's certificate. An imported key gets no policies: somebody may have a copy."""
        fixed = self.verdict.residency is Residency.FIXED
        policies = (POLICY_RESIDENT, POLICY_FIXED) if fixed else ()
        return Subject.device(name, hardware=self._tpm.names(), policies=policies)

    def attestation_key(self, name: str) -> Subject:
        """The subject of the attestation key's certificate: without a dNSName nobody takes it for a TLS identity."""
        return Subject(name=name, dns=(), hardware=self._tpm.names(), policies=(POLICY_RESTRICTED,))

    @property
    def _tpm(self) -> TpmIdentity:
        return TpmIdentity(bytes.fromhex(self.verdict.ek_hash))


def prove(evidence: Evidence, challenge: Challenge | None, public_key: bytes, *, terms: Terms, now: datetime) -> Proof:
    """Judges ``evidence`` for the CSR's key ``public_key`` (DER SPKI).

    What the caller must have checked says `judge_evidence`.

    Raises:
        EvidenceRefusedError: one of the checks 1 to 7; 3 also where the CA does not certify the attestation key's kind.
    """
    verdict = judge_evidence(evidence, challenge=challenge, public_key=public_key, terms=terms, now=now)
    if challenge is None or challenge.activation is None:
        return Proof(verdict, None)
    with numbered(3):
        return Proof(verdict, check_public_key(load_der_public_key(verdict.ak.spki or b"")))
