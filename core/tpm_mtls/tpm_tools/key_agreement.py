"""The trials ``ecdh`` and ``ecdh-aes``: key agreement, alone and as a backend uses it to send something to a device."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from tpm_mtls.authorization import Secret
from tpm_mtls.errors import CredentialError
from tpm_mtls.tpm_tools.trial import check_refused, check_same, require_storage_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.structures import PublicArea
    from tpm_mtls.tpm import LoadedKey, Tpm
    from tpm_mtls.tpm_tools.trial import Trial

_OFF_THE_CURVE: Final = b"\x04" + b"\x01" * 32 + b"\x02" * 32  # no point of P-256
_PURPOSE: Final = b"tpm-mtls tpm test ecdh-aes"
_MESSAGE: Final = b"what only this TPM can read"
_NONCE: Final = 12  # bytes, of AES-GCM: NIST SP 800-38D, 8.2


def try_key_agreement(tpm: Tpm, trial: Trial) -> None:
    """ECDH in the TPM, with itself and with OpenSSL (12 commands).

    Raises:
        StateError: there is no storage root key.
        EvidenceError: the TPM computes wrongly.
    """
    agreement = tpm.key_agreement
    with _new_key(tpm, trial) as key:
        with trial.proving("ECDH_KeyGen: the TPM made an ephemeral key and a shared secret"):
            begun = agreement.begin(key)
        with trial.proving("ECDH_ZGen: from the ephemeral key it came to the same secret"):
            check_same(agreement.finish(key, begun.share).value, begun.secret.value, "ECDH_ZGen and ECDH_KeyGen differ")
        with trial.proving("OpenSSL, with a key of its own, came to the same secret as the TPM"):
            share, secret = _software_side(key.public)
            check_same(agreement.finish(key, share).value, secret.value, "ECDH_ZGen and OpenSSL differ")
        with trial.proving("a point that is not on the curve was refused"):
            check_refused(lambda: agreement.finish(key, _OFF_THE_CURVE), CredentialError, "a point off the curve")


def try_encrypted_exchange(tpm: Tpm, trial: Trial) -> None:
    """A message that somebody encrypts to the TPM's key, as a backend would: ECDH, HKDF, AES-256-GCM (5 commands).

    Raises:
        StateError: there is no storage root key.
        EvidenceError: the TPM computes wrongly.
    """
    with _new_key(tpm, trial) as key:
        with trial.proving(
            "somebody who has only the public key encrypted a message (ECDH, HKDF-SHA-256, AES-256-GCM)"
        ):
            share, secret = _software_side(key.public)
            nonce = secrets.token_bytes(_NONCE)
            encrypted = _cipher(secret, share).encrypt(nonce, _MESSAGE, share)
        with trial.proving("the TPM came to the same AES key, and the message was readable"):
            cipher = _cipher(tpm.key_agreement.finish(key, share), share)
            check_same(_decrypted(cipher, nonce, encrypted, share), _MESSAGE, "the message is another one")
        with trial.proving("a message with one bit changed was refused"):
            changed = encrypted[:-1] + bytes([encrypted[-1] ^ 1])
            check_same(_decrypted(cipher, nonce, changed, share), b"", "a changed message was accepted")


@contextmanager
def _new_key(tpm: Tpm, trial: Trial) -> Iterator[LoadedKey]:
    require_storage_root(tpm)
    with trial.proving("the TPM made an ECDH key that cannot leave it"):
        key = tpm.key_agreement.create_key()
    trial.facts["algorithm"] = key.public.algorithm
    with key:
        yield key


def _software_side(public: PublicArea) -> tuple[bytes, Secret]:
    """What OpenSSL sends to the owner of ``public``, and the secret that it computes: share and secret."""
    other = cast("ec.EllipticCurvePublicKey", load_der_public_key(public.spki or b""))
    own = ec.generate_private_key(other.curve)
    share = own.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return share, Secret(own.exchange(ec.ECDH(), other))


def _cipher(secret: Secret, share: bytes) -> AESGCM:
    """The key of both sides: RFC 5869; the share goes in, so that it cannot be exchanged."""
    return AESGCM(HKDF(SHA256(), 32, salt=share, info=_PURPOSE).derive(secret.value))


def _decrypted(cipher: AESGCM, nonce: bytes, encrypted: bytes, share: bytes) -> bytes:
    """The message; nothing where its tag is wrong."""
    try:
        return cipher.decrypt(nonce, encrypted, share)
    except InvalidTag:
        return b""
