"""Attestation: whether what a device says it booted is true, and what its operator wants. Pure; no TPM is needed.

judgement = verify(evidence, Facts(device=…, tpm=…, nonce=…, trust=…, revocation=…, policy=Learn()), now=now)
judgement.verdict()                     # the answer to the device
judgement.clock, judgement.seen         # what the registry is to keep
"""

from tpm_mtls_server.attestation.attestation_key import AttestationTrust
from tpm_mtls_server.attestation.boot_state import BootState
from tpm_mtls_server.attestation.clock import ClockState
from tpm_mtls_server.attestation.nonce import IssuedNonce
from tpm_mtls_server.attestation.policy import Approve, Learn, Policy, Signed, Values
from tpm_mtls_server.attestation.verifier import Facts, Judgement, verify

__all__ = [
    "Approve",
    "AttestationTrust",
    "BootState",
    "ClockState",
    "Facts",
    "IssuedNonce",
    "Judgement",
    "Learn",
    "Policy",
    "Signed",
    "Values",
    "verify",
]
