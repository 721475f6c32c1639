"""The checks 1 to 7 of an enrollment with evidence, in their order; nothing here has an effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tpm_mtls.certificates import certificate_spki
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls.evidence_checks import (
    Residency,
    check_attestation_key,
    check_certification,
    check_endorsement_key,
    check_freshness,
    check_requested_key,
    check_residency,
    numbered,
)
from tpm_mtls.freshness import bind
from tpm_mtls.structures import Attribute, PublicArea
from tpm_mtls_pki.evidence.challenge import parse_certificate
from tpm_mtls_pki.evidence.endorsement import check_endorsement
from tpm_mtls_pki.roca import is_roca

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls.evidence import Evidence
    from tpm_mtls_pki.evidence.challenge import Activation, Challenge
    from tpm_mtls_pki.evidence.endorsement import EkTrust

NO_POLICY: Final = frozenset({b""})
"""The usual key: used with its authorization value, or without."""

ALLOW_LIST: Final = "allow-list"
CERTIFICATE: Final = "certificate"
"""Who endorses a TPM, if not its maker."""


@dataclass(frozen=True)
class Voucher:
    """An attestation-key certificate of this CA's own, as its store knows it: it says what checks 1 to 4 would.

    The caller found it by the certificate's very bytes; it is neither revoked nor expired, and the binding of TPM and
    device still stands.

    Attributes:
        ek_hash: the endorsement key (SHA-256 of its public key, hex) that was verified when it was issued.
        ak: the attestation key; of its public area only the key is known.
    """

    ek_hash: str
    ak: PublicArea

    @classmethod
    def of_key(cls, ek_hash: str, public_key: bytes) -> Voucher:
        """A voucher for the attestation key ``public_key`` (DER SPKI), which may sign with any scheme that it can."""
        key = load_der_public_key(public_key)
        kind = f"rsa-{key.key_size}" if isinstance(key, rsa.RSAPublicKey) else "ecc"
        unknown = PublicArea(b"", b"", kind, "null", Attribute(0), b"", "null", public_key)
        return cls(ek_hash, unknown)


@dataclass(frozen=True)
class Terms:
    """What the evidence is held against: the administrator's settings.

    Attributes:
        trust: the TPM makers' CAs.
        listed: whether the endorsement key is on the allow-list.
        imported: whether a TLS key that was not born in the TPM will do.
        policies: acceptable authorization policies of the TLS key (digests; the empty one for none); none for any.
        voucher: what vouches for the attestation key where no credential was activated.
    """

    trust: EkTrust
    listed: bool = False
    imported: bool = False
    policies: frozenset[bytes] | None = NO_POLICY
    voucher: Voucher | None = None


@dataclass(frozen=True)
class Verdict:
    """Evidence that passed checks 1 to 7.

    Attributes:
        ek_hash: the TPM: SHA-256 of its endorsement key's public key, hex.
        endorsed_by: who says that the TPM is genuine: ``allow-list``, the name of the maker's root, or ``certificate``
            (this CA's own, of the attestation key).
        residency: where the TLS key lives.
        key: the TLS key's public area.
        ak: the attestation key's public area; without data and Name where a certificate vouched for it.
    """

    ek_hash: str
    endorsed_by: str
    residency: Residency
    key: PublicArea
    ak: PublicArea


def judge_evidence(
    evidence: Evidence, *, challenge: Challenge | None, public_key: bytes, terms: Terms, now: datetime
) -> Verdict:
    """Whether ``evidence`` proves that the key ``public_key`` lives in a genuine TPM.

    1. The endorsement key (EK) is on the allow-list, or its certificate leads to a TPM maker's root and is what the
       TCG's profile says (`check_endorsement`).
    2. The EK's public area has that very key and is a storage key born in a TPM.
    3. The attestation key (AK) is restricted, signs, cannot leave its TPM, and is of an acceptable algorithm.
    4. A fresh secret was encrypted to that EK for that AK. (7 shows that it came back.) Or else, where no credential
       was asked for, a certificate of this CA vouches for the AK, and for 1 to 3.
    5. That AK certified (TPM2_Certify) a key whose Name is computed from the public area in the evidence: a TLS key
       that was made in this TPM and stays there, with an expected policy; or, with ``terms.imported``, was imported.
    6. That key is ``public_key``.
    7. The extraData is HMAC-SHA-256(secret, nonce), or with a certified AK the nonce; in constant time.

    The caller must have checked, and nothing here can: that the CSR's self-signature verifies over the attribute that
    the evidence came in; that ``challenge`` was given to this very client (connection or ticket), is not older than its
    lifetime, and cannot be taken again. If there is no such challenge it passes none, and check 7 refuses.

    Not checked here: to which device the TPM belongs, and what was known of both (8, 9: `tpm_mtls_pki.admission`).

    Args:
        evidence: as decoded from the CSR.
        challenge: the exchange that this answers; none if there is none, or none any more.
        public_key: the CSR's key, DER SubjectPublicKeyInfo.
        terms: what it is held against.
        now: the present.

    Returns:
        What was proved.

    Raises:
        EvidenceRefusedError: a check failed; ``check`` is its number. The message is for the administrator's log: an
            applicant should learn nothing from it.
    """
    if challenge is None:
        raise EvidenceRefusedError(
            "the evidence answers no open challenge: it is unknown, used, expired or another client's",
            hint="ask for another nonce",
            check=7,
        )
    activation = challenge.activation
    if activation is None:
        voucher = _find_voucher(terms)  # 4
        tpm, endorsed_by, ak, expected = voucher.ek_hash, CERTIFICATE, voucher.ak, challenge.nonce
    else:
        endorsed_by = _check_tpm(activation, evidence, terms, now)  # 1, 2
        _check_ak(activation.ak)  # 3
        tpm, ak = activation.ek_hash, activation.ak
        expected = bind(activation.secret, challenge.nonce)  # 4: the secret was made for this EK and AK
    attest, key = check_certification(evidence.attest, evidence.signature, ak, evidence.public)  # 5
    residency = check_residency(key, policies=terms.policies, imported=terms.imported)
    check_requested_key(key, public_key)  # 6
    check_freshness(attest, expected)  # 7
    return Verdict(
        ek_hash=tpm,
        endorsed_by=endorsed_by,
        residency=residency,
        key=key,
        ak=ak,
    )


def _check_tpm(activation: Activation, evidence: Evidence, terms: Terms, now: datetime) -> str:
    """Checks 1 and 2; returns who vouches for the TPM."""
    ek, certificate = activation.ek, activation.ek_certificate
    if terms.listed:
        endorsed_by = ALLOW_LIST
    elif certificate is not None:
        with numbered(1):
            sent = tuple(parse_certificate(each) for each in evidence.certificates)
        endorsed_by = check_endorsement(certificate, (*activation.ek_chain, *sent), terms.trust, now=now)
    else:
        raise EvidenceRefusedError(
            "the endorsement key has no certificate and is not on the allow-list",
            hint=f"if that is one of yours: tpm-mtls pki allow add --ek-hash {activation.ek_hash}",
            check=1,
        )
    _check_strength(ek, 1, "endorsement")
    certified = certificate_spki(certificate) if certificate is not None else ek.spki
    check_endorsement_key(ek, certified or b"")  # 2
    return endorsed_by


def _check_ak(ak: PublicArea) -> None:
    check_attestation_key(ak)
    _check_strength(ak, 3, "attestation")


def _check_strength(public: PublicArea, check: int, what: str) -> None:
    """A key that can be factored proves nothing, wherever it was made."""
    key = load_der_public_key(public.spki) if public.spki is not None else None
    if isinstance(key, rsa.RSAPublicKey) and is_roca(key.public_numbers().n):
        raise EvidenceRefusedError(
            f"the {what} key was made by a faulty TPM (CVE-2017-15361) and can be factored",
            hint="update the TPM's firmware, or use its elliptic-curve key",
            check=check,
        )


def _find_voucher(terms: Terms) -> Voucher:
    if terms.voucher is None:
        raise EvidenceRefusedError(
            "no credential was activated, and no certificate of this CA vouches for the attestation key",
            hint="ask for a nonce with the endorsement key and the attestation key",
            check=4,
        )
    return terms.voucher
