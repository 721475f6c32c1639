"""The trial ``sign``: a signature as TLS needs one."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tpm_mtls.errors import CredentialError
from tpm_mtls.identity import load_identity, load_record
from tpm_mtls.key_reference import KeyFile, parse_key_reference
from tpm_mtls.policy.files import find_signed_policies
from tpm_mtls.policy.key_policy import key_policy
from tpm_mtls.structures import KeyAlgorithm
from tpm_mtls.tpm.policy_session import Proof
from tpm_mtls.tpm.templates import signing_template
from tpm_mtls.tpm.tls_key import load_tls_key
from tpm_mtls.tpm_tools.trial import check_accepted, check_refused, parent_for_trials

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpm_mtls.authorization import Secret
    from tpm_mtls.key_reference import KeyReference
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm import LoadedKey, Tpm
    from tpm_mtls.tpm_tools.trial import Trial


def find_key(reference: str | None, folder: Path) -> KeyReference | None:
    """The key that is meant by ``reference``, else that of the identity ``folder``; none where it has none in a TPM.

    Raises:
        KeyReferenceError: ``reference`` names no key.
        IdentityError: the folder's record is damaged.
    """
    if reference is not None:
        return parse_key_reference(reference)
    record = load_record(folder)
    return load_identity(folder).key if record is not None and record.is_tpm else None


def policy_folders(reference: KeyReference | None, folder: Path) -> list[Path]:
    """Where the policy of a key may lie: beside it, and in the identity ``folder``."""
    return [reference.path.parent, folder] if isinstance(reference, KeyFile) else [folder]


def try_signing(
    tpm: Tpm,
    trial: Trial,
    reference: KeyReference | None,
    *,
    authorization: Secret | None = None,
    folders: Sequence[Path] = (),
    algorithm: KeyAlgorithm = KeyAlgorithm.ECC_P256,
) -> None:
    """A signature by the key ``reference``, or by a new one of ``algorithm`` that is not kept; OpenSSL verifies it.

    Args:
        tpm: the open TPM.
        trial: is told what was proven.
        reference: the key; none for a new one.
        authorization: its authorization value, if it has one.
        folders: where its policy is, if it has one.
        algorithm: of a new one.

    Raises:
        EvidenceError: the signature does not verify, or holds for something else, too.
        HandleNotFoundError, ForeignKeyError, CredentialError, …: as `load_tls_key`.
    """
    trial.facts["key"] = None if reference is None else str(reference)
    with _key(tpm, trial, reference, authorization, algorithm) as key:
        hash_algorithm = signature_hash(key.public)
        trial.facts["algorithm"] = key.public.algorithm
        digest = secrets.token_bytes(hash_algorithm.digest_size)
        with trial.proving("the TPM signed a digest, and OpenSSL verified the signature"):
            signature = tpm.sign(key, digest, hash_name=hash_algorithm.name, proof=_proof(key.public, folders))
            check_accepted(
                lambda: _verify(key.public, signature, digest, hash_algorithm), InvalidSignature, "a wrong signature"
            )
        with trial.proving("the signature holds for no other digest"):
            other = bytes([digest[0] ^ 1]) + digest[1:]
            check_refused(
                lambda: _verify(key.public, signature, other, hash_algorithm), InvalidSignature, "another digest"
            )


def _key(
    tpm: Tpm,
    trial: Trial,
    reference: KeyReference | None,
    authorization: Secret | None,
    algorithm: KeyAlgorithm,
) -> LoadedKey:
    if reference is not None:
        with trial.proving(f"the TPM can use the key {reference}"):
            return load_tls_key(tpm, reference, authorization=authorization)
    with trial.proving(f"the TPM made an {algorithm} key for this test, which is not kept"):
        return tpm.create_child(parent_for_trials(tpm), signing_template(algorithm, with_authorization=False), None)


def _proof(public: PublicArea, folders: Sequence[Path]) -> Proof | None:
    document = key_policy(public, folders).document
    if document is None:
        return None
    signed, _ = find_signed_policies(folders)
    return Proof(document.policy, signed)


def signature_hash(public: PublicArea) -> hashes.SHA256 | hashes.SHA384:
    """The hash with which the TLS key ``public`` signs.

    Raises:
        CredentialError: it is of a kind that TLS keys are not made of.
    """
    if public.key_algorithm is None:
        raise CredentialError(
            f"the key has the algorithm {public.algorithm}, which is none of a TLS key",
            hint="use ecc-p256, ecc-p384, rsa-2048 or rsa-3072",
        )
    return hashes.SHA384() if public.key_algorithm.signature_hash == "sha384" else hashes.SHA256()


def _verify(public: PublicArea, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm) -> None:
    key = load_der_public_key(public.spki or b"")
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, digest, padding.PKCS1v15(), Prehashed(algorithm))
    else:
        cast("ec.EllipticCurvePublicKey", key).verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
