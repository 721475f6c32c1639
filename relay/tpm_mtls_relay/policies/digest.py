"""What a policy's assertions make of a session's policyDigest: TPM 2.0 Library part 1 rev 1.59, 19.7, and part 3, 23.

Pure functions; the TPM computes the same, so what differs here is refused before it is asked.
"""

from __future__ import annotations

import hashlib

from tpm_mtls_relay.messages.commands import POLICY_AUTH_VALUE, POLICY_AUTHORIZE, POLICY_NV, POLICY_OR, POLICY_PCR
from tpm_mtls_relay.policies.fields import PolicyFileError
from tpm_mtls_relay.policies.file import BANKS, NAME_ALGORITHMS, Assertion, AuthValue, Nv, Or, Pcr, SignedPolicy

NV_COMPARISON = b"\x00\x00\x00\x09"
"""Offset 0, and TPM_EO_UNSIGNED_LE: the unsigned number in the NV index is at most the operand (part 2, table 22)."""

_SELECT_SIZE = 3  # bytes of the bit map of PCRs 0 to 23


def policy_digest(policy: tuple[Assertion, ...], algorithm: str) -> bytes:
    """The policyDigest after ``policy`` in a session whose authHash is ``algorithm`` (hashlib's name).

    Raises:
        PolicyFileError: a PCR digest has another size than that algorithm's.
    """
    digest = bytes(hashlib.new(algorithm).digest_size)
    for assertion in policy:
        digest = _extended(digest, assertion, algorithm)
    return digest


def branch_digests(assertion: Or, algorithm: str) -> list[bytes]:
    """The digests that TPM2_PolicyOR takes."""
    return [policy_digest(branch, algorithm) for branch in assertion.branches]


def pcr_selection(assertion: Pcr) -> bytes:
    """TPML_PCR_SELECTION of one bank (part 2, 10.9.7)."""
    bits = sum(1 << pcr for pcr in assertion.pcrs)
    bank = BANKS[assertion.bank][0]
    return (
        (1).to_bytes(4, "big") + bank.to_bytes(2, "big") + bytes([_SELECT_SIZE]) + bits.to_bytes(_SELECT_SIZE, "little")
    )


def approval_digest(signed: SignedPolicy) -> bytes:
    """aHash, what the operator signed: the signer's nameAlg over approvedPolicy and policyRef (part 3, 23.16)."""
    return hashlib.new(name_algorithm(signed.signer_name), signed.digest + signed.policy_ref).digest()


def name_algorithm(name: bytes) -> str:
    """The algorithm of a Name, as hashlib calls it."""
    return NAME_ALGORITHMS[int.from_bytes(name[:2], "big")]


def name_of(public: bytes) -> bytes:
    """The Name of a TPMT_PUBLIC (part 1, 16); empty if its nameAlg is unknown."""
    algorithm = NAME_ALGORITHMS.get(int.from_bytes(public[2:4], "big"))
    return public[2:4] + hashlib.new(algorithm, public).digest() if algorithm else b""


def _extended(digest: bytes, assertion: Assertion, algorithm: str) -> bytes:
    def extend(before: bytes, code: int, arguments: bytes) -> bytes:
        return hashlib.new(algorithm, before + code.to_bytes(4, "big") + arguments).digest()

    zero = bytes(len(digest))
    match assertion:
        case Pcr():
            if len(assertion.digest) != len(digest):
                raise PolicyFileError(f"a PCR digest has {len(assertion.digest)} bytes, not {len(digest)}")
            return extend(digest, POLICY_PCR, pcr_selection(assertion) + assertion.digest)
        case AuthValue():
            return extend(digest, POLICY_AUTH_VALUE, b"")
        case Nv():
            arguments = hashlib.new(algorithm, assertion.operand + NV_COMPARISON).digest()
            return extend(digest, POLICY_NV, arguments + assertion.name)
        case Or():
            return extend(zero, POLICY_OR, b"".join(branch_digests(assertion, algorithm)))
        case _:
            first = extend(zero, POLICY_AUTHORIZE, assertion.signer_name)
            return hashlib.new(algorithm, first + assertion.policy_ref).digest()
