"""Templates from which the TPM makes keys: marshalled TPMT_PUBLIC structures (TPM 2.0 Library part 2, 12.2.4)."""

from __future__ import annotations

from tpm2_pytss.constants import TPM2_ALG, TPM2_ECC, TPMA_OBJECT
from tpm2_pytss.types import (
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_KEYEDHASH_PARMS,
    TPMS_RSA_PARMS,
    TPMS_SCHEME_HASH,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_KEYEDHASH_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SYM_DEF_OBJECT,
    TPMU_ASYM_SCHEME,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from tpm_mtls.structures import Attribute, KeyAlgorithm

_COORDINATE = bytes(32)

_CURVES = {KeyAlgorithm.ECC_P256: TPM2_ECC.NIST_P256, KeyAlgorithm.ECC_P384: TPM2_ECC.NIST_P384}
_RSA_BITS = {KeyAlgorithm.RSA_2048: 2048, KeyAlgorithm.RSA_3072: 3072}

BORN_INSIDE = Attribute.FIXEDTPM | Attribute.FIXEDPARENT | Attribute.SENSITIVEDATAORIGIN


def storage_root_template() -> bytes:
    """The ECC P-256 storage root key.

    TCG TPM v2.0 Provisioning Guidance 1.0 rev 1.0, 7.5.1: the endorsement key's template L-2 (TCG EK Credential Profile
    2.5, B.3.4: AES-128-CFB, SHA-256, coordinates of 32 zero bytes) with userWithAuth and noDA and without a policy.
    """
    public = _ecc(
        TPM2_ECC.NIST_P256,
        BORN_INSIDE | Attribute.USERWITHAUTH | Attribute.NODA | Attribute.RESTRICTED | Attribute.DECRYPT,
        _aes_128_cfb(),
    )
    public.unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=_COORDINATE, y=_COORDINATE))
    return bytes(public.marshal())


def without_unique(template: bytes) -> bytes:
    """``template`` up to what the TPM chooses when it makes the key (the field unique, part 2, 12.2.4)."""
    public, _ = TPMT_PUBLIC.unmarshal(template)
    return template[: -len(public.unique.marshal(public.type))]


def signing_template(algorithm: KeyAlgorithm, *, with_authorization: bool, policy: bytes = b"") -> bytes:
    """A TLS key: signs whatever it is given (TLS hashes outside the TPM), with any scheme of its algorithm.

    With a policy nothing else lets it sign (no userWithAuth). adminWithPolicy stays clear: TPM2_Certify, an ADMIN use,
    takes the authorization value, so that the TPM can vouch for the key whatever was booted (part 1, 19.3).

    Args:
        algorithm: kind and size.
        with_authorization: whether it has an authorization value, which dictionary-attack protection then guards.
        policy: its authPolicy, 32 bytes; empty for none.
    """
    return _signing(algorithm, BORN_INSIDE, with_authorization=with_authorization, policy=policy)


def attestation_template() -> bytes:
    """An attestation key: ECC P-256, signs by ECDSA with SHA-256, and only what the TPM itself made (restricted)."""
    public = _ecc(
        TPM2_ECC.NIST_P256,
        BORN_INSIDE | Attribute.RESTRICTED | Attribute.SIGN | Attribute.USERWITHAUTH | Attribute.NODA,
        TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
    )
    public.parameters.eccDetail.scheme = TPMT_ECC_SCHEME(
        scheme=TPM2_ALG.ECDSA, details=TPMU_ASYM_SCHEME(ecdsa=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256))
    )
    return bytes(public.marshal())


def key_agreement_template(algorithm: KeyAlgorithm) -> bytes:
    """A key for ECDH only, on the curve of ``algorithm``: decrypts, does not sign, is not restricted (part 3, 14.5)."""
    public = _ecc(
        _CURVES[algorithm],
        BORN_INSIDE | Attribute.DECRYPT | Attribute.USERWITHAUTH | Attribute.NODA,
        TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
    )
    return bytes(public.marshal())


def sealed_template(*, with_authorization: bool, policy: bytes = b"") -> bytes:
    """Sealed data: neither signs nor decrypts, and stays under its parent (part 1, 25.1.6).

    With a policy nothing else unseals it (no userWithAuth).

    Args:
        with_authorization: whether it has an authorization value, which dictionary-attack protection then guards.
        policy: its authPolicy, 32 bytes; empty for none.
    """
    attributes = Attribute.FIXEDTPM | Attribute.FIXEDPARENT
    if not policy:
        attributes |= Attribute.USERWITHAUTH
    if not with_authorization:
        attributes |= Attribute.NODA
    public = TPMT_PUBLIC(
        type=TPM2_ALG.KEYEDHASH,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=TPMA_OBJECT(int(attributes)),
        authPolicy=policy,
        parameters=TPMU_PUBLIC_PARMS(
            keyedHashDetail=TPMS_KEYEDHASH_PARMS(scheme=TPMT_KEYEDHASH_SCHEME(scheme=TPM2_ALG.NULL))
        ),
    )
    return bytes(public.marshal())


def imported_template(algorithm: KeyAlgorithm, *, with_authorization: bool) -> bytes:
    """A TLS key that existed before: as `signing_template`, but without the attributes that say it was born inside.

    Its missing fixedTPM is how anybody can tell (part 1, 23.2). It cannot be duplicated out of this TPM again: that
    takes a policy, and it has none.
    """
    return _signing(algorithm, Attribute(0), with_authorization=with_authorization)


def hierarchy_parent_template(*, rsa: bool) -> bytes:
    """The primary key that key files mean with a hierarchy as the parent: ECC P-256, or RSA-2048, with noDA.

    ASN.1 Specification for TPM 2.0 Key Files, 3.1.8; both as tpm2-openssl makes them.
    """
    attributes = BORN_INSIDE | Attribute.USERWITHAUTH | Attribute.NODA | Attribute.RESTRICTED | Attribute.DECRYPT
    public = _rsa(2048, attributes, _aes_128_cfb()) if rsa else _ecc(TPM2_ECC.NIST_P256, attributes, _aes_128_cfb())
    return bytes(public.marshal())


def tools_parent_template(*, rsa: bool) -> bytes:
    """The primary key that ``tpm2_createprimary -G ecc``, or ``rsa``, makes by default: as above, without noDA."""
    attributes = BORN_INSIDE | Attribute.USERWITHAUTH | Attribute.RESTRICTED | Attribute.DECRYPT
    public = _rsa(2048, attributes, _aes_128_cfb()) if rsa else _ecc(TPM2_ECC.NIST_P256, attributes, _aes_128_cfb())
    return bytes(public.marshal())


def _aes_128_cfb() -> TPMT_SYM_DEF_OBJECT:
    return TPMT_SYM_DEF_OBJECT(
        algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
    )


def _signing(algorithm: KeyAlgorithm, origin: Attribute, *, with_authorization: bool, policy: bytes = b"") -> bytes:
    attributes = origin | Attribute.SIGN
    if not policy:
        attributes |= Attribute.USERWITHAUTH
    if not with_authorization:
        attributes |= Attribute.NODA
    none = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
    if algorithm.is_ecc:
        public = _ecc(_CURVES[algorithm], attributes, none)
    else:
        public = _rsa(_RSA_BITS[algorithm], attributes, none)
    public.authPolicy = policy
    return bytes(public.marshal())


def _ecc(curve: int, attributes: Attribute, symmetric: TPMT_SYM_DEF_OBJECT) -> TPMT_PUBLIC:
    return TPMT_PUBLIC(
        type=TPM2_ALG.ECC,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=TPMA_OBJECT(int(attributes)),
        parameters=TPMU_PUBLIC_PARMS(
            eccDetail=TPMS_ECC_PARMS(
                symmetric=symmetric,
                scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL),
                curveID=curve,
                kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
            )
        ),
    )


def _rsa(bits: int, attributes: Attribute, symmetric: TPMT_SYM_DEF_OBJECT) -> TPMT_PUBLIC:
    return TPMT_PUBLIC(
        type=TPM2_ALG.RSA,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=TPMA_OBJECT(int(attributes)),
        parameters=TPMU_PUBLIC_PARMS(
            rsaDetail=TPMS_RSA_PARMS(
                symmetric=symmetric, scheme=TPMT_RSA_SCHEME(scheme=TPM2_ALG.NULL), keyBits=bits, exponent=0
            )
        ),
    )
