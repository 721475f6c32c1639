"""Policies signed by an operator, for TPM2_PolicyAuthorize: made with a key in a PEM file, verified without a TPM.

TPM 2.0 Library part 3 rev 1.59, 23.16: what is signed is SHA-256(approvedPolicy || policyRef).
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from tpm_mtls.errors import CredentialError, EvidenceError, PemError, PolicyError, UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import SignedPolicy, Signer, check_assertions, check_version
from tpm_mtls.structures import parse_public_area, parse_signature, verify_signature
from tpm_mtls.structures.external_key import external_public

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.policy.document import Assertion

SigningKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

REFERENCE_LIMIT: Final = 32
"""Bytes of a policyRef; a TPM2B_NONCE is as long as the TPM's longest digest."""

_RSASSA: Final = 0x0014
_ECDSA: Final = 0x0018
_SHA256: Final = 0x000B
_SCHEMES: Final = {("rsassa", "sha256"), ("ecdsa", "sha256")}
_RSA_BITS: Final = range(2048, 4097)
_COORDINATE: Final = 32  # bytes, P-256


def read_signer(path: Path) -> Signer:
    """The operator's public key in the PEM file ``path``.

    Raises:
        CredentialError: it is neither P-256 nor RSA with 2,048 to 4,096 bits.
        PemError: it is no public key, or a private one, which does not belong on a device.
        StorageError: it cannot be read.
    """
    data = read_capped(path)
    if b"PRIVATE KEY-----" in data:
        raise PemError(
            f"{path} is a private key", hint="give its public half: openssl pkey -in KEY -pubout; keep the key away"
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PemError(f"{path} holds no public key", hint="expected the output of: openssl pkey -pubout") from error
    if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) and _is_supported(key):
        return signer_of(key)
    raise _unsupported(path)


def signer_of(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> Signer:
    """The signer with the public key ``key``."""
    area = external_public(key)
    return Signer(public=area.data.hex(), name=area.name.hex())


def read_signing_key(path: Path, *, passphrase: Secret | None = None) -> SigningKey:
    """The operator's private key in the PEM file ``path``, decrypted with ``passphrase`` if it is encrypted.

    Raises:
        CredentialError: it is neither P-256 nor RSA with 2,048 to 4,096 bits.
        PemError: it is no complete private key, or the passphrase is wrong.
        UsageError: the passphrase is missing, or the key is not encrypted.
        StorageError: it cannot be read.
    """
    try:
        key = load_pem_private_key(read_capped(path), passphrase.value if passphrase else None)
    except TypeError as error:
        if passphrase is None:
            raise UsageError(f"{path} is encrypted", hint="give --passphrase prompt, file:F or credential:N") from error
        raise UsageError(f"{path} is not encrypted", hint="leave --passphrase out") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "is damaged, or the passphrase is wrong" if passphrase else "holds no private key, or is damaged"
        raise PemError(f"{path} {what}", hint="check it with: openssl pkey -noout -in") from error
    if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) and _is_supported(key):
        return key
    raise _unsupported(path)


def sign_policy(
    key: SigningKey, policy: Sequence[Assertion], *, policy_ref: bytes, version: int, description: str = ""
) -> SignedPolicy:
    """``policy``, approved by ``key``.

    Args:
        key: the operator's.
        policy: PCRs and the counter.
        policy_ref: for what it is meant; as in the policies of the objects.
        version: which the counter in ``policy`` is held against.
        description: for people.

    Raises:
        PolicyError: there is something in ``policy`` that is not signed for.
        UsageError: ``policy_ref`` is too long.
    """
    check_assertions(policy, "the policy to be signed", signed=True)
    check_version(policy, version, "the policy to be signed")
    check_reference(policy_ref)
    digest = policy_digest(policy)
    return SignedPolicy(
        signer=signer_of(key.public_key()).name,
        policy_ref=policy_ref.hex(),
        version=version,
        description=description,
        policy=tuple(policy),
        digest=digest.hex(),
        signature=_sign(key, digest + policy_ref).hex(),
    )


def verify_signed_policy(signed: SignedPolicy, signer: Signer, *, name: str = "the signed policy") -> None:
    """Checks that ``signer`` approved ``signed``.

    1. It names that signer, whose Name is computed from its public area.
    2. Its digest is the one that its assertions lead to.
    3. The signature is RSASSA or ECDSA with SHA-256, and verifies over digest and policyRef.

    The caller must check that an object's policy trusts ``signer``, for this policyRef.

    Raises:
        PolicyError: a check failed; ``name`` says in the message where the policy came from.
    """
    public = parse_public_area(bytes.fromhex(signer.public))
    if signed.signer != signer.name or public.name.hex() != signer.name:  # 1
        raise PolicyError(
            f"{name} is signed by another key: {signed.signer}", hint=f"this one's policies are signed by {signer.name}"
        )
    digest = policy_digest(signed.policy)
    if not hmac.compare_digest(digest.hex(), signed.digest):  # 2
        raise PolicyError(f"{name} was changed after it was signed", hint="copy it again, or have it signed again")
    data = digest + bytes.fromhex(signed.policy_ref)
    signature = bytes.fromhex(signed.signature)
    try:
        parsed = parse_signature(signature, public)
        acceptable = (parsed.scheme, parsed.hash) in _SCHEMES  # 3
        verify_signature(data, signature, public)
    except EvidenceError as error:
        raise _wrong_signature(name) from error
    if not acceptable:
        raise _wrong_signature(name)


def check_reference(policy_ref: bytes) -> bytes:
    """Returns ``policy_ref`` if a TPM takes it.

    Raises:
        UsageError: it is too long.
    """
    if len(policy_ref) > REFERENCE_LIMIT:
        raise UsageError(f"the policy reference has more than {REFERENCE_LIMIT} bytes", hint="a short word will do")
    return policy_ref


def _sign(key: SigningKey, data: bytes) -> bytes:
    """TPMT_SIGNATURE: part 2, 11.3.4."""
    if isinstance(key, rsa.RSAPrivateKey):
        return _numbers(_RSASSA, _SHA256) + _sized(key.sign(data, padding.PKCS1v15(), hashes.SHA256()))
    parts = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return _numbers(_ECDSA, _SHA256) + b"".join(_sized(part.to_bytes(_COORDINATE, "big")) for part in parts)


def _numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def _sized(content: bytes) -> bytes:
    return _numbers(len(content)) + content


def _is_supported(
    key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey | rsa.RSAPublicKey | rsa.RSAPrivateKey,
) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return isinstance(key.curve, ec.SECP256R1)
    return key.key_size in _RSA_BITS


def _unsupported(path: Path) -> CredentialError:
    return CredentialError(
        f"{path} holds a key by which no policies are signed", hint="use ECC P-256, or RSA with 2048 to 4096 bits"
    )


def _wrong_signature(name: str) -> PolicyError:
    return PolicyError(f"the signature of {name} is wrong", hint="copy it again, or have it signed again")
