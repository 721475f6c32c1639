"""The checks of evidence that both sides make: the CA to decide, the device beforehand, to say what will not do.

The numbers are those of the enrollment's nine checks, in code, errors and audit log alike:

1. EK certificate, or allow-list       the CA's (`tpm_mtls_pki.evidence.endorsement`)
2. EK public area                      `check_endorsement_key`
3. attestation key                     `check_attestation_key`
4. credential activation               the CA's (`tpm_mtls_pki.evidence.verifier`)
5. TPM2_Certify and the TLS key        `check_certification`, `check_residency`
6. the CSR's key                       `check_requested_key`
7. freshness                           `check_freshness`
8. binding of TPM and device           the CA's (`tpm_mtls_pki.admission`)
9. the same again at renewal           the CA's (`tpm_mtls_pki.admission`)

Everything here is pure. Each function does its own check only: evidence is worth something when all of them passed.
"""

from __future__ import annotations

import enum
import hmac
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import CredentialError, EvidenceRefusedError
from tpm_mtls.structures import (
    Attest,
    Attribute,
    Certified,
    PublicArea,
    check_ek_public,
    parse_attest,
    parse_public_area,
    verify_signature,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME_ALGORITHMS: Final = ("sha256", "sha384", "sha512")
_ATTESTATION_SCHEMES: Final = {
    "ecc-p256": ("ecdsa",),
    "ecc-p384": ("ecdsa",),
    "rsa-2048": ("rsassa", "rsapss"),
    "rsa-3072": ("rsassa", "rsapss"),
    "rsa-4096": ("rsassa", "rsapss"),
}
_EVIDENCE_HINT = "make new evidence with the key that is to be certified"
_KEY_HINT = "make the key in this TPM: tpm-mtls keygen create"


class Residency(enum.Enum):
    """What is known about where a key lives."""

    FIXED = "fixed"
    """Made by the TPM and bound to it for good: fixedTPM, fixedParent, sensitiveDataOrigin."""

    IMPORTED = "imported"
    """In the TPM now; somebody may have a copy."""


@contextmanager
def numbered(check: int) -> Iterator[None]:
    """Whatever credential the block refuses, check number ``check`` refused."""
    try:
        yield
    except EvidenceRefusedError:
        raise
    except CredentialError as error:
        raise EvidenceRefusedError(str(error), hint=error.hint, check=check) from error


def check_endorsement_key(public: PublicArea, public_key: bytes) -> None:
    """Check 2: the endorsement key's public area is that of the certified key, so that no decoy gets the credential.

    1. It has ``public_key`` (DER SPKI): the EK certificate's key, or the one on the allow-list.
    2. It is a storage key, born in a TPM, for which a credential can be made (`structures.check_ek_public`).

    The caller must have made check 1.

    Raises:
        EvidenceRefusedError: check 2.
    """
    with numbered(2):
        check_ek_public(public, public_key)


def check_attestation_key(public: PublicArea) -> None:
    """Check 3: the attestation key signs nothing that its TPM did not write itself (part 1, 25.1.7).

    1. restricted, sign, neither decrypt nor x509sign.
    2. fixedTPM, fixedParent, sensitiveDataOrigin.
    3. ECDSA with P-256 or P-384, RSASSA or RSAPSS with RSA-2048 to RSA-4096; SHA-256, SHA-384 or SHA-512 in the scheme
       and in the Name.

    The caller must make check 4, too: only that says that the key is in the TPM at all.

    Raises:
        EvidenceRefusedError: check 3.
    """
    attributes = public.attributes
    is_attestation_key = (  # 1
        Attribute.RESTRICTED | Attribute.SIGN in attributes
        and not attributes & (Attribute.DECRYPT | Attribute.X509SIGN)
        and public.spki is not None
    )
    if not is_attestation_key:
        raise _refused(3, f"the attestation key would sign anything: {public}", "it must be restricted, and sign")
    if not public.was_born_inside:  # 2
        raise _refused(3, f"the attestation key is not fixed to a TPM: {public}", "make it in the TPM")
    scheme, _, digest = public.scheme.partition("-")
    acceptable = scheme in _ATTESTATION_SCHEMES.get(public.algorithm, ()) and digest in _NAME_ALGORITHMS
    if not acceptable or public.name_algorithm not in _NAME_ALGORITHMS:  # 3
        raise _refused(
            3,
            f"an attestation key of {public.algorithm} with {public.scheme} and a {public.name_algorithm} Name is not "
            "accepted",
            "use P-256 with ECDSA and SHA-256",
        )


def check_certification(
    attest: bytes, signature: bytes, ak: PublicArea, public: bytes | None
) -> tuple[Attest, PublicArea]:
    """The first half of check 5: the attestation key's TPM certified the key with this public area.

    1. ``attest`` is what TPM2_Certify makes: its magic and type.
    2. ``ak`` signed it.
    3. The Name in it is the one computed from ``public`` (TPMT_PUBLIC), so that all its attributes are true.

    The caller must have made checks 3 and 4 of ``ak``, and goes on with `check_residency`, 6 and 7.

    Returns:
        What was attested, and the certified key's public area.

    Raises:
        EvidenceRefusedError: check 5.
    """
    with numbered(5):
        parsed = parse_attest(attest)  # 1
        verify_signature(attest, signature, ak)  # 2
        if public is None:
            raise _refused(5, "the certified key's public area is missing", "send it with the evidence (tpmTPublic)")
        key = parse_public_area(public)
    if not isinstance(parsed.attested, Certified):
        raise _refused(5, "the attestation certifies no key", _EVIDENCE_HINT)
    if not key.name or not hmac.compare_digest(parsed.attested.name, key.name):  # 3
        raise _refused(5, "the certified Name is not that of the public area", _EVIDENCE_HINT)
    return parsed, key


def check_residency(key: PublicArea, *, policies: frozenset[bytes] | None, imported: bool) -> Residency:
    """The second half of check 5: the certified key is a TLS key that cannot leave its TPM.

    1. sign, neither restricted nor decrypt nor x509sign; SHA-256, SHA-384 or SHA-512 in its Name.
    2. fixedTPM, fixedParent and sensitiveDataOrigin; or, with ``imported``, not all of them.
    3. Its authorization policy is one of ``policies``, and cannot be gone round: a key with userWithAuth, which is used
       without satisfying any (part 1, 19.3), has none.

    The caller must have made `check_certification`: without it the attributes are only claimed.

    Args:
        key: its public area.
        policies: acceptable policy digests, the empty one standing for a key without policy; none for any whatsoever.
        imported: whether a key that somebody may have a copy of will do.

    Raises:
        EvidenceRefusedError: check 5.
    """
    unwanted = key.attributes & (Attribute.DECRYPT | Attribute.X509SIGN)
    if not key.is_signing_key or unwanted or key.name_algorithm not in _NAME_ALGORITHMS:  # 1
        raise _refused(5, f"the certified key is no TLS key: {key}", _KEY_HINT)
    if not key.was_born_inside and not imported:  # 2
        raise _refused(5, f"the certified key is not fixed to its TPM: {key}", _KEY_HINT)
    if policies is not None and key.policy not in policies:  # 3
        raise _refused(
            5, f"the certified key has another policy than expected: {key.policy.hex() or 'none'}", _KEY_HINT
        )
    if policies is not None and key.policy and Attribute.USERWITHAUTH in key.attributes:
        raise _refused(5, f"the certified key can be used without its policy: {key}", _KEY_HINT)
    return Residency.FIXED if key.was_born_inside else Residency.IMPORTED


def check_requested_key(key: PublicArea, public_key: bytes) -> None:
    """Check 6: the certified key is the one that the CSR asks a certificate for.

    Args:
        key: the certified key.
        public_key: the CSR's key (DER SPKI). The caller must have verified the CSR's self-signature, which covers the
            evidence too.

    Raises:
        EvidenceRefusedError: check 6.
    """
    if key.spki is None or not hmac.compare_digest(key.spki, public_key):
        raise _refused(6, "the certified key is not the request's key", _EVIDENCE_HINT)


def check_freshness(attest: Attest, expected: bytes) -> None:
    """Check 7: the attestation answers this exchange. Compared in constant time.

    Args:
        attest: the attestation, whose signature was verified.
        expected: HMAC-SHA-256(activated secret, nonce); or the nonce, where a certificate vouches for the attestation
            key. The caller must see to it that the nonce is used once, soon, and by whom it was given to.

    Raises:
        EvidenceRefusedError: check 7.
    """
    if not hmac.compare_digest(attest.extra_data, expected):
        raise _refused(
            7, "the attestation answers another nonce, or the credential was not activated", "ask for another nonce"
        )


def _refused(check: int, message: str, hint: str) -> EvidenceRefusedError:
    return EvidenceRefusedError(message, hint=hint, check=check)
