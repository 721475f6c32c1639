"""Credentials that only one TPM can open: what TPM2_MakeCredential does, without a TPM.

TPM 2.0 Library part 1 rev 1.59, 24 (credential protection), B.10.4 and C.6.4 (the seed's encryption); part 3, 12.6
(TPM2_MakeCredential); part 2, 12.4.3 (TPM2B_ID_OBJECT) and 11.4.33 (TPM2B_ENCRYPTED_SECRET).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tpm2_pytss.types import TPM2B_DIGEST, TPM2B_NAME, TPMT_PUBLIC
from tpm2_pytss.utils import make_credential as _make_credential

from tpm_mtls.errors import EvidenceError

if TYPE_CHECKING:
    from tpm_mtls.structures.public_area import PublicArea

SECRET_LENGTH = 32
"""Bytes of a secret: as long as an HMAC-SHA-256 key should be, and no longer than a SHA-256 Name's digest."""

CREDENTIAL_LIMIT = 2 + 2 + 64 + 2 + 64
"""Bytes of a TPM2B_ID_OBJECT: an HMAC with SHA-512, and an encrypted secret with its size."""

ENCRYPTED_SECRET_LIMIT = 2 + 512
"""Bytes of a TPM2B_ENCRYPTED_SECRET: RSA-4096."""

_ALGORITHMS: Final = ("rsa-2048", "rsa-3072", "rsa-4096", "ecc-p256", "ecc-p384")
_DIGESTS: Final = {"sha256": 32, "sha384": 48, "sha512": 64}
_AES, _CFB, _AES_BITS = 0x0006, 0x0043, (128, 256)
_HINT = "use the TPM's own endorsement key: RSA-2048, P-256 or P-384, made from the TCG's template"


def make_credential(ek_public: PublicArea, ak_name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """``secret``, encrypted so that TPM2_ActivateCredential gives it back in one case only.

    The TPM holds the endorsement key ``ek_public`` and has an object with the Name ``ak_name`` loaded.

    Not verified: that ``ek_public`` lives in a genuine TPM (its certificate tells), and what sort of object ``ak_name``
    names (its public area tells). Without either the credential proves nothing.

    Args:
        ek_public: the endorsement key (`check_credential_key`).
        ak_name: the attestation key's Name: nameAlg (2 bytes) and digest.
        secret: 1 byte up to the digest length of the endorsement key's Name algorithm; by convention `SECRET_LENGTH`.

    Returns:
        credentialBlob (TPM2B_ID_OBJECT) and secret (TPM2B_ENCRYPTED_SECRET), marshalled with their sizes.

    Raises:
        EvidenceError: no credential can be made for such a key, or that is no Name.
        ValueError: the secret has another length.
    """
    check_credential_key(ek_public)
    if len(ak_name) not in {2 + length for length in _DIGESTS.values()}:
        raise EvidenceError("that is no Name of an attestation key", hint=_HINT)
    if not 1 <= len(secret) <= _DIGESTS[ek_public.name_algorithm]:
        raise ValueError("a credential's secret is no longer than the digest of the key's Name algorithm")
    public, _ = TPMT_PUBLIC.unmarshal(ek_public.data)
    blob, encrypted = _make_credential(public, TPM2B_DIGEST(buffer=secret), TPM2B_NAME(name=ak_name))
    return bytes(blob.marshal()), bytes(encrypted.marshal())


def check_credential_key(public: PublicArea) -> None:
    """Checks that a credential can be made for ``public``.

    1. RSA-2048 to RSA-4096, P-256 or P-384: the sizes at which a secret stays one.
    2. Its Name algorithm is SHA-256, SHA-384 or SHA-512.
    3. It is a storage key, whose cipher is AES-128 or AES-256 in CFB mode.

    Raises:
        EvidenceError: a check failed.
    """
    if public.algorithm not in _ALGORITHMS:  # 1
        raise EvidenceError(f"an endorsement key of {public.algorithm} is not accepted", hint=_HINT)
    if public.name_algorithm not in _DIGESTS:  # 2
        raise EvidenceError(f"an endorsement key with {public.name_algorithm} is not accepted", hint=_HINT)
    area, _ = TPMT_PUBLIC.unmarshal(public.data)
    cipher = area.parameters.asymDetail.symmetric
    kind = (int(cipher.algorithm), int(cipher.mode.sym), int(cipher.keyBits.sym))
    if not public.is_storage_key or kind not in {(_AES, _CFB, bits) for bits in _AES_BITS}:  # 3
        raise EvidenceError("an endorsement key that is no storage key with AES is not accepted", hint=_HINT)
