"""A loaded TPM key in the shape in which `cryptography` wants a private key: it signs, and gives out nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tpm_mtls.errors import CredentialError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding

    from tpm_mtls.structures import KeyAlgorithm
    from tpm_mtls.tpm import LoadedKey, Tpm

Signer: TypeAlias = "EccSigner | RsaSigner"


def signer_for(tpm: Tpm, key: LoadedKey) -> Signer:
    """The private key object for ``key``, for `cryptography`'s builders; usable as long as ``tpm`` is open.

    Raises:
        CredentialError: the key's algorithm is none that this project makes certificates for.
    """
    algorithm, spki = key.public.key_algorithm, key.public.spki
    if algorithm is None or spki is None:
        raise CredentialError(
            f"no certificate can be made for a key with the algorithm {key.public.algorithm}",
            hint="use ecc-p256, ecc-p384, rsa-2048 or rsa-3072",
        )
    return (EccSigner if algorithm.is_ecc else RsaSigner)(tpm, key, algorithm, spki)


def signature_hash(algorithm: KeyAlgorithm) -> hashes.SHA256 | hashes.SHA384:
    """The hash with which a key of ``algorithm`` signs certificates and requests (RFC 5480, 4)."""
    return hashes.SHA384() if algorithm.signature_hash == "sha384" else hashes.SHA256()


class _StaysInside:
    """What a private key in a TPM cannot or shall not do."""

    def __init__(self, tpm: Tpm, key: LoadedKey, algorithm: KeyAlgorithm, spki: bytes) -> None:
        self._tpm = tpm
        self._key = key
        self._spki = spki
        self.algorithm = algorithm

    def _sign(self, data: bytes, algorithm: object) -> bytes:
        expected = signature_hash(self.algorithm)
        if not isinstance(algorithm, type(expected)):
            raise TypeError(f"this key signs with {expected.name} only")
        digest = hashes.Hash(expected)
        digest.update(data)
        return self._tpm.sign(self._key, digest.finalize(), hash_name=expected.name)

    def _public_key(self) -> Any:  # noqa: ANN401 - of the kind that the subclass names
        return load_der_public_key(self._spki)

    def private_numbers(self) -> NoReturn:
        """Never possible."""
        raise NotImplementedError("a private key never leaves the TPM")

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> NoReturn:  # noqa: A002 - cryptography's signature
        """Never possible."""
        raise NotImplementedError("a private key never leaves the TPM")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> Self:
        return self


class EccSigner(_StaysInside, ec.EllipticCurvePrivateKey):
    """An ECDSA key in a TPM."""

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # noqa: ANN401 - any buffer
        """ECDSA-Sig-Value in DER, made by the TPM over the digest of ``data``."""
        return self._sign(data, signature_algorithm.algorithm)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        key: ec.EllipticCurvePublicKey = self._public_key()
        return key

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self.public_key().curve

    @property
    def key_size(self) -> int:
        """Bits of the curve."""
        return self.public_key().key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Never possible: TLS keys sign only."""
        raise NotImplementedError("this key only signs")


class RsaSigner(_StaysInside, rsa.RSAPrivateKey):
    """An RSA key in a TPM; signs RSASSA-PKCS1-v1_5."""

    def sign(self, data: bytes, padding: AsymmetricPadding, algorithm: object) -> bytes:
        """The signature, made by the TPM over the digest of ``data``."""
        if padding.name != "EMSA-PKCS1-v1_5":
            raise TypeError("this key signs certificates and requests with PKCS #1 v1.5 only")
        return self._sign(data, algorithm)

    def public_key(self) -> rsa.RSAPublicKey:
        """The public half."""
        key: rsa.RSAPublicKey = self._public_key()
        return key

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return self.public_key().key_size

    def decrypt(self, ciphertext: bytes, padding: AsymmetricPadding) -> NoReturn:
        """Never possible: TLS keys sign only."""
        raise NotImplementedError("this key only signs")
