"""Endorsement keys (EK): the TCG's templates, and the public area that belongs to an EK certificate.

TCG EK Credential Profile for TPM Family 2.0, version 2.5, 2.2.1.4 (NV indices), B.3 (low range: L-1, L-2), B.4 (high
range: H-1 and following), B.6 (policies).
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tpm2_pytss.constants import TPM2_ALG, TPM2_ECC, TPMA_OBJECT
from tpm2_pytss.types import (
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_RSA_PARMS,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SYM_DEF_OBJECT,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from tpm_mtls.certificates import certificate_spki
from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures.credential import check_credential_key
from tpm_mtls.structures.public_area import Attribute, PublicArea, parse_public_area

if TYPE_CHECKING:
    from cryptography import x509

_LOW = (
    Attribute.FIXEDTPM
    | Attribute.FIXEDPARENT
    | Attribute.SENSITIVEDATAORIGIN
    | Attribute.ADMINWITHPOLICY
    | Attribute.RESTRICTED
    | Attribute.DECRYPT
)
_HIGH = _LOW | Attribute.USERWITHAUTH

# B.6.2: PolicyA is PolicySecret(TPM_RH_ENDORSEMENT). B.6.5: PolicyB is PolicyOR(PolicyA, PolicyC), where PolicyC is
# PolicyAuthorizeNV of an index that only the platform writes. The tests compute both from their parts.
_POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_SHA256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)


_HINT = "EK certificates for RSA-2048, P-256 and P-384 keys are known; ask the TPM's maker for another one"
_DECOY = "use the TPM's own endorsement key, made from the TCG's template"
_EXPONENT = 65537


class EkTemplate(enum.Enum):
    """A template of the profile; the value is its name there."""

    RSA_2048 = "L-1"
    ECC_P256 = "L-2"
    HIGH_RSA_2048 = "H-1"
    HIGH_ECC_P256 = "H-2"
    HIGH_ECC_P384 = "H-3"

    @property
    def algorithm(self) -> str:
        """As `PublicArea.algorithm`, such as ``rsa-2048``."""
        return _FORMS[self].algorithm

    @property
    def is_high(self) -> bool:
        """Whether it is of the high range, whose keys have userWithAuth; a policy alone authorizes the low range's."""
        return bool(_FORMS[self].attributes & Attribute.USERWITHAUTH)

    @property
    def certificate_index(self) -> int:
        """NV index of the certificate."""
        return _FORMS[self].certificate_index

    @property
    def nonce_index(self) -> int | None:
        """NV index of the nonce that goes into the template's ``unique``; only the low range has one."""
        return None if self.is_high else self.certificate_index + 1

    @property
    def template_index(self) -> int:
        """NV index of a template that replaces this one, if the maker wrote any."""
        return self.certificate_index + (1 if self.is_high else 2)


@dataclass(frozen=True)
class _Form:
    certificate_index: int
    algorithm: str
    attributes: Attribute
    name_algorithm: int
    policy: bytes
    aes_bits: int


_FORMS: Final = {
    EkTemplate.RSA_2048: _Form(0x01C00002, "rsa-2048", _LOW, TPM2_ALG.SHA256, _POLICY_A_SHA256, 128),
    EkTemplate.ECC_P256: _Form(0x01C0000A, "ecc-p256", _LOW, TPM2_ALG.SHA256, _POLICY_A_SHA256, 128),
    EkTemplate.HIGH_RSA_2048: _Form(0x01C00012, "rsa-2048", _HIGH, TPM2_ALG.SHA256, _POLICY_B_SHA256, 128),
    EkTemplate.HIGH_ECC_P256: _Form(0x01C00014, "ecc-p256", _HIGH, TPM2_ALG.SHA256, _POLICY_B_SHA256, 128),
    EkTemplate.HIGH_ECC_P384: _Form(0x01C00016, "ecc-p384", _HIGH, TPM2_ALG.SHA384, _POLICY_B_SHA384, 256),
}
_CURVES: Final = {"ecc-p256": (TPM2_ECC.NIST_P256, 32), "ecc-p384": (TPM2_ECC.NIST_P384, 48)}
_RSA_BYTES = 256


def ek_template(template: EkTemplate) -> bytes:
    """The marshalled TPMT_PUBLIC from which TPM2_CreatePrimary in the endorsement hierarchy makes the key.

    ``unique`` is zeros in the low range (a TPM with a nonce in NV wants it there) and empty in the high range.
    """
    if template.algorithm not in _CURVES:
        return _marshal(template, TPMU_PUBLIC_ID(rsa=b"" if template.is_high else bytes(_RSA_BYTES)))
    zeros = b"" if template.is_high else bytes(_CURVES[template.algorithm][1])
    return _marshal(template, TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=zeros, y=zeros)))


def ek_public(template: EkTemplate, public_key: bytes) -> PublicArea:
    """The public area of an endorsement key that was made from ``template`` and has ``public_key`` (DER SPKI).

    Raises:
        EvidenceError: the key is not of the template's kind and size.
    """
    key = _load(public_key)
    if _algorithm(key) != template.algorithm:
        raise EvidenceError(
            f"the endorsement key is not {template.algorithm}, which {template.value} makes", hint=_HINT
        )
    if isinstance(key, rsa.RSAPublicKey):
        return _public(template, TPMU_PUBLIC_ID(rsa=key.public_numbers().n.to_bytes(_RSA_BYTES, "big")))
    numbers, size = key.public_numbers(), _CURVES[template.algorithm][1]
    x, y = numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
    return _public(template, TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=x, y=y)))


def ek_public_from_certificate(certificate: x509.Certificate, template: EkTemplate | None = None) -> PublicArea:
    """The endorsement key's public area, as its certificate's key and a TCG template determine it.

    A certificate does not say which template its key was made from. Without ``template`` it is the low range's for
    RSA-2048 and P-256 (L-1, L-2: what nearly every TPM has), and H-3 for P-384.

    Not verified: the certificate.

    Raises:
        EvidenceError: no template makes such a key, or not ``template``.
        PemError: the certificate's key cannot be read.
    """
    public_key = certificate_spki(certificate)
    algorithm = _algorithm(_load(public_key))
    chosen = template or next((one for one in EkTemplate if one.algorithm == algorithm), None)
    if chosen is None:
        raise EvidenceError("the EK certificate's key is of a kind that no known TCG template makes", hint=_HINT)
    return ek_public(chosen, public_key)


def find_ek_template(public: PublicArea) -> EkTemplate | None:
    """The template that the endorsement key ``public`` was made from; none if it is another, or no endorsement key."""
    for template in EkTemplate:
        if template.algorithm == public.algorithm and public.spki is not None:
            with_key = ek_public(template, public.spki)
            if with_key.data == public.data:
                return template
    return None


def check_ek_public(public: PublicArea, public_key: bytes) -> None:
    """Checks that ``public`` is the endorsement key with ``public_key`` (DER SPKI), as a TPM would have made it.

    1. It has that key.
    2. It is a storage key that was born in a TPM: fixedTPM, fixedParent, sensitiveDataOrigin, restricted, decrypt, not
       sign. An applicant that lies here gains nothing but a credential that its TPM cannot activate.
    3. A credential can be made for it (`make_credential`): kind, size, Name algorithm and cipher.

    It need not be one of the known templates: makers may write their own to NV (`find_ek_template`).

    Not verified: whose key that is. The caller must have checked the EK certificate, or the key against its list.

    Raises:
        EvidenceError: a check failed.
    """
    if public.spki != public_key:  # 1
        raise EvidenceError("the endorsement key is another than its certificate's", hint=_DECOY)
    if not (public.is_storage_key and public.was_born_inside):  # 2
        raise EvidenceError(f"that is no endorsement key: {public}", hint=_DECOY)
    check_credential_key(public)  # 3


def ek_hash(public_key: bytes) -> str:
    """By what the project knows an endorsement key: SHA-256 of its public key (DER SPKI), in hex.

    Not of its public area: one key has several of those, since its other fields are whatever the applicant says.
    ``openssl pkey -pubin -outform DER | sha256sum`` gives the same.
    """
    return hashlib.sha256(public_key).hexdigest()


def _load(public_key: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError("the endorsement key cannot be read", hint=_HINT) from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise EvidenceError("the endorsement key is neither RSA nor ECC", hint=_HINT)
    return key


def _algorithm(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> str | None:
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa-{key.key_size}" if key.public_numbers().e == _EXPONENT else None
    return {"secp256r1": "ecc-p256", "secp384r1": "ecc-p384"}.get(key.curve.name)


def _public(template: EkTemplate, unique: TPMU_PUBLIC_ID) -> PublicArea:
    return parse_public_area(_marshal(template, unique))


def _marshal(template: EkTemplate, unique: TPMU_PUBLIC_ID) -> bytes:
    form = _FORMS[template]
    aes = TPMT_SYM_DEF_OBJECT(
        algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=form.aes_bits), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
    )
    is_ecc = form.algorithm in _CURVES
    public = TPMT_PUBLIC(
        type=TPM2_ALG.ECC if is_ecc else TPM2_ALG.RSA,
        nameAlg=form.name_algorithm,
        objectAttributes=TPMA_OBJECT(int(form.attributes)),
        authPolicy=form.policy,
        parameters=_ecc_parameters(_CURVES[form.algorithm][0], aes) if is_ecc else _rsa_parameters(aes),
        unique=unique,
    )
    return bytes(public.marshal())


def _rsa_parameters(symmetric: TPMT_SYM_DEF_OBJECT) -> TPMU_PUBLIC_PARMS:
    scheme = TPMT_RSA_SCHEME(scheme=TPM2_ALG.NULL)
    return TPMU_PUBLIC_PARMS(
        rsaDetail=TPMS_RSA_PARMS(symmetric=symmetric, scheme=scheme, keyBits=_RSA_BYTES * 8, exponent=0)
    )


def _ecc_parameters(curve: int, symmetric: TPMT_SYM_DEF_OBJECT) -> TPMU_PUBLIC_PARMS:
    return TPMU_PUBLIC_PARMS(
        eccDetail=TPMS_ECC_PARMS(
            symmetric=symmetric,
            scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL),
            curveID=curve,
            kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
        )
    )
