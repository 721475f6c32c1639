"""The three operations on which a device depends, tried: wrapping, quoting, signing."""

from __future__ import annotations

import hmac
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tpm_mtls.attestation.health import Caution
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.certificates import certificate_spki, load_certificates
from tpm_mtls.errors import (
    CertificateMismatchError,
    CredentialError,
    EvidenceError,
    PolicyRefusedError,
    StorageRootKeyChangedError,
    TpmLockoutError,
    TpmRefusedError,
)
from tpm_mtls.identity import RECORD, load_identity
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.policy.check import judge
from tpm_mtls.policy.files import find_signed_policies
from tpm_mtls.policy.key_policy import key_policy
from tpm_mtls.policy.observation import observe
from tpm_mtls.policy.ways import needs_authorization
from tpm_mtls.structures import Attribute
from tpm_mtls.tpm.policy_session import Proof
from tpm_mtls.tpm.tls_key import load_tls_key, read_key_file
from tpm_mtls.tpm_attributes import WHY_IT_COUNTS
from tpm_mtls_agent.health.classify import Skipped
from tpm_mtls_agent.quote import collect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tpm_mtls.attestation.health import Condition
    from tpm_mtls.authorization import Secret
    from tpm_mtls.identity import Identity, IdentityRecord
    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm import Tpm

_SIZE: Final = 32  # bytes of random data, of a nonce
_LOCKOUT: Final = 0x921  # TPM_RC_LOCKOUT
_HASHES: Final = {"sha256": hashes.SHA256, "sha384": hashes.SHA384}


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        folder: the identity folder.
        record: its record; none where there is none, or it is damaged.
        authorization: the TLS key's authorization value, if it has one and it is known.
        condition: what the TPM says about itself; none if it does not say.
    """

    folder: Path
    record: IdentityRecord | None
    authorization: Secret | None
    condition: Condition | None


def wrap(tpm: Tpm, _: Subject) -> None:
    """Random data sealed under the storage root key comes back (seven commands; none writes NV memory).

    Raises:
        StorageRootKeyChangedError: the storage root key is not the identity's, or there is none; none is made.
        TpmRefusedError: the TPM refuses, or gave back other data.
        TpmUnavailableError: none answers.
    """
    _require_srk(tpm)
    data = secrets.token_bytes(_SIZE)
    if not hmac.compare_digest(tpm.sealing.unseal(tpm.sealing.seal(data)), data):
        raise TpmRefusedError(
            "the TPM gave back other data than it had been given to seal",
            hint="power the machine off and on again; if it stays, replace the TPM",
            rc=0,
        )


def quote(tpm: Tpm, subject: Subject) -> Skipped | None:
    """A quote for a random nonce passes the checks that a backend makes of it (six commands).

    Returns:
        `Skipped` where the device was enrolled without an attestation key.

    Raises:
        as `tpm_mtls_agent.quote.collect`.
    """
    if load_attestation_key(subject.folder) is None:
        return Skipped()
    collect(tpm, subject.folder, secrets.token_bytes(_SIZE), None, None)
    return None


def sign(tpm: Tpm, subject: Subject) -> Skipped | None:
    """The TLS key signs a random digest, and the certificate's public key verifies that (two or three commands).

    With a policy on PCRs two more. What could bring the TPM nearer to its lockout is not tried: a key whose
    authorization value is not known, or any such key when half of the attempts are used up.

    Returns:
        `Skipped` where there is no identity, or its key's authorization value is not known.

    Raises:
        IdentityError, StorageError, PemError: key or certificate cannot be read.
        HandleNotFoundError, ForeignKeyError: the key is not in this TPM.
        CertificateMismatchError: the certificate belongs to another key.
        PolicyError, PolicyRefusedError: the key's policy is missing, or does not hold; what differs is in the message.
        AuthorizationError, TpmLockoutError: its authorization value is wrong; too many wrong ones were tried.
        EvidenceError: the signature does not verify.
        TpmRefusedError, TpmUnavailableError: the TPM refuses for another reason; none answers.
    """
    if subject.record is None and not (subject.folder / RECORD).exists():
        return Skipped()
    identity = load_identity(subject.folder)
    known = subject.authorization is not None
    if not known and isinstance(identity.key, KeyFile) and not read_key_file(identity.key.path).empty_auth:
        return Skipped(_unknown_authorization(identity))
    certified = certificate_spki(load_certificates(identity.certificate)[0])
    with load_tls_key(tpm, identity.key, authorization=subject.authorization) as key:
        proof = _proof(key.public, identity)
        if not known and isinstance(identity.key, PersistentHandle) and _may_need_value(key.public, proof):
            return Skipped(_unknown_authorization(identity))
        _check_certificate(key.public, certified, identity)
        _spare_lockout(key.public, subject)
        digest, name = _random_digest(key.public)
        with _explaining(tpm, identity, proof):
            signature = tpm.sign(key, digest, hash_name=name, proof=proof)
    _verify(certified, signature, digest, name)
    return None


def _require_srk(tpm: Tpm) -> None:
    """So that no session makes the storage root key, where none is there (`tpm_mtls.tpm.sessions.Sessions.srk`)."""
    found = tpm.srk.read()
    expected = tpm.sessions.expected
    if found is not None and expected in {None, found.name}:
        tpm.sessions.expected = found.name
    elif expected is not None:
        raise StorageRootKeyChangedError(expected=expected, found=found.name if found else None)
    else:
        raise CredentialError(
            "the TPM has no storage root key", hint="it is made with the first key: tpm-mtls keygen first-boot"
        )


def _may_need_value(public: PublicArea, proof: Proof | None) -> bool:
    """Whether there may be an authorization value, and a try without it would count towards the lockout."""
    asked_for = proof is None or needs_authorization(proof.policy)
    return asked_for and Attribute.NODA not in public.attributes


def _unknown_authorization(identity: Identity) -> Caution:
    return Caution(
        kind="SignUnchecked",
        text=f"the key {identity.key} has an authorization value, which the agent does not know: its signature is not "
        "checked",
        hint="give it to the agent: --auth file:PATH or credential:NAME",
    )


def _spare_lockout(public: PublicArea, subject: Subject) -> None:
    condition = subject.condition
    if subject.authorization is None or condition is None or Attribute.NODA in public.attributes:
        return
    if condition.lockout_counter * 2 >= condition.lockout_limit:
        raise TpmLockoutError(
            f"the key's authorization value is not tried: {condition.lockout_counter} wrong ones of "
            f"{condition.lockout_limit} were tried before, and it may be wrong itself",
            hint=f"check what --auth names; {WHY_IT_COUNTS}; one is forgotten every {condition.lockout_interval} s, or "
            "as the TPM's owner: tpm2_dictionarylockout --clear-lockout",
            rc=_LOCKOUT,
        )


def _check_certificate(public: PublicArea, certified: bytes, identity: Identity) -> None:
    if public.spki != certified:
        raise CertificateMismatchError(
            f"the certificate {identity.certificate} does not belong to the key {identity.key}",
            hint="restore what belongs to the key: tpm-mtls keygen restore; or enroll again",
        )


def _random_digest(public: PublicArea) -> tuple[bytes, str]:
    algorithm = public.key_algorithm
    if algorithm is None:
        raise CredentialError(f"{public.algorithm} is no algorithm of a TLS key", hint="make another key, and enroll")
    return secrets.token_bytes(_HASHES[algorithm.signature_hash]().digest_size), algorithm.signature_hash


@contextmanager
def _explaining(tpm: Tpm, identity: Identity, proof: Proof | None) -> Iterator[None]:
    """Says what differs where the key's policy does not hold (a few commands then)."""
    try:
        yield
    except PolicyRefusedError as error:
        policy, signed = (proof.policy, proof.signed_policies) if proof is not None else ((), ())
        obstacles = judge(policy, observe(tpm, policy, signed), signed).obstacles if policy else ()
        why = "; ".join(map(str, obstacles)) or "something changed meanwhile"
        raise PolicyRefusedError(
            f"the policy of the key {identity.key} does not hold: {why}",
            hint="boot what the key is bound to, or install a policy signed for what runs now: "
            "tpm-mtls policy install FILE",
            rc=error.rc,
        ) from error


def _proof(public: PublicArea, identity: Identity) -> Proof | None:
    if Attribute.USERWITHAUTH in public.attributes:
        return None
    folders = [identity.certificate.parent]
    document = key_policy(public, folders).document
    signed, _ = find_signed_policies(folders)
    return Proof(document.policy, signed) if document is not None else None


def _verify(spki: bytes, signature: bytes, digest: bytes, name: str) -> None:
    key, algorithm = load_der_public_key(spki), Prehashed(_HASHES[name]())
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, padding.PKCS1v15(), algorithm)
        else:
            cast("ec.EllipticCurvePublicKey", key).verify(signature, digest, ec.ECDSA(algorithm))
    except InvalidSignature as error:
        raise EvidenceError(
            "the TPM's signature does not verify with the certificate's public key",
            hint="power the machine off and on again; if it stays, replace the TPM",
        ) from error
