"""The policyDigest to which assertions lead: what a TPM computes in a policy session with SHA-256. Pure.

TPM 2.0 Library part 1 rev 1.59, 19.7.3; part 3, 23 (each command's "policyDigest is updated"); part 2, 6.5.2 (TPM_CC).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, assert_never

from tpm_mtls.policy.document import PolicyAuthorize, PolicyAuthValue, PolicyNv, PolicyOr, PolicyPcr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls.policy.document import Assertion

POLICY_NV: Final = 0x149
POLICY_AUTHORIZE: Final = 0x16A
POLICY_AUTH_VALUE: Final = 0x16B
POLICY_OR: Final = 0x171
POLICY_PCR: Final = 0x17F

_START: Final = bytes(32)
_UNSIGNED_LE: Final = 0x0009  # TPM_EO: part 2, 6.9
_SELECT_BYTES: Final = 3
_HASHES: Final = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}


def policy_digest(policy: Sequence[Assertion]) -> bytes:
    """The policyDigest after ``policy``, 32 bytes: authPolicy of an object, or approvedPolicy of a signed policy."""
    digest = _START
    for assertion in policy:
        digest = _extend(digest, assertion)
    return digest


def pcr_selection(assertion: PolicyPcr) -> bytes:
    """TPML_PCR_SELECTION with one bank: part 2, 10.6.2 and 10.9.7."""
    bits = sum(1 << pcr for pcr in assertion.pcrs).to_bytes(_SELECT_BYTES, "little")
    return _number(1, 4) + _number(_HASHES[assertion.bank], 2) + _number(len(bits), 1) + bits


def nv_arguments(assertion: PolicyNv) -> bytes:
    """OperandB, offset and operation, as PolicyNV hashes them."""
    return bytes.fromhex(assertion.operand) + _number(0, 2) + _number(_UNSIGNED_LE, 2)


def _extend(digest: bytes, assertion: Assertion) -> bytes:
    match assertion:
        case PolicyPcr():
            return _hash(
                digest, _number(POLICY_PCR, 4), pcr_selection(assertion), bytes.fromhex(assertion.digest)
            )  # 23.7
        case PolicyAuthValue():
            return _hash(digest, _number(POLICY_AUTH_VALUE, 4))  # 23.17
        case PolicyNv():
            arguments = _hash(nv_arguments(assertion))
            return _hash(digest, _number(POLICY_NV, 4), arguments, bytes.fromhex(assertion.name))  # 23.9
        case PolicyOr():
            return _hash(_START, _number(POLICY_OR, 4), *map(policy_digest, assertion.branches))  # 23.6
        case PolicyAuthorize():
            signer = _hash(_START, _number(POLICY_AUTHORIZE, 4), bytes.fromhex(assertion.signer.name))  # 23.16
            return _hash(signer, bytes.fromhex(assertion.policy_ref))
        case _:
            assert_never(assertion)


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()
