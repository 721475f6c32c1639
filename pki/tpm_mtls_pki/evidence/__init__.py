"""Evidence that a key lives in a genuine TPM, judged. Pure: bytes, a time and what the administrator set up go in.

`judge_evidence` makes the checks 1 to 7; whose certificate it may be, checks 8 and 9, is `tpm_mtls_pki.admission`'s.
"""

from tpm_mtls_pki.evidence.challenge import Activation, Challenge, make_activation
from tpm_mtls_pki.evidence.endorsement import EkTrust, check_endorsement
from tpm_mtls_pki.evidence.verifier import ALLOW_LIST, CERTIFICATE, Terms, Verdict, Voucher, judge_evidence

__all__ = [
    "ALLOW_LIST",
    "CERTIFICATE",
    "Activation",
    "Challenge",
    "EkTrust",
    "Terms",
    "Verdict",
    "Voucher",
    "check_endorsement",
    "judge_evidence",
    "make_activation",
]
