"""The CA's private keys: made, and kept as passphrase-encrypted PKCS #8.

PBES2 (RFC 8018, 6.2) with scrypt (RFC 7914) and AES-256-CBC. ``cryptography`` itself writes PBKDF2 with 2,048 rounds,
which is too quick to guess against; it reads scrypt, and so does ``openssl pkey``.
"""

from __future__ import annotations

import base64
import os
import textwrap
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import ObjectIdentifier

from tpm_mtls.errors import CredentialError, PemError
from tpm_mtls.files import check_private, read_capped

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import Secret

_PBES2 = ObjectIdentifier("1.2.840.113549.1.5.13")  # RFC 8018, appendix A.4
_SCRYPT = ObjectIdentifier("1.3.6.1.4.1.11591.4.11")  # RFC 7914, 7
_AES_256_CBC = ObjectIdentifier("2.16.840.1.101.3.4.1.42")  # RFC 8018, appendix B.2.5

# 16 MiB and 0.2 s a guess (OWASP's minimum, in the variant that stays below the 32 MiB OpenSSL allows a key file)
_SCRYPT_COST, _SCRYPT_BLOCK, _SCRYPT_PARALLEL = 2**14, 8, 5
_SALT_BYTES = 16
_KEY_BYTES = 32
_BLOCK_BYTES = 16


@asn1.sequence
class _ScryptParameters:
    salt: bytes
    cost: int
    block: int
    parallel: int
    key_bytes: int


@asn1.sequence
class _Kdf:
    algorithm: ObjectIdentifier
    parameters: _ScryptParameters


@asn1.sequence
class _Cipher:
    algorithm: ObjectIdentifier
    initialization_vector: bytes


@asn1.sequence
class _Pbes2Parameters:
    kdf: _Kdf
    cipher: _Cipher


@asn1.sequence
class _Algorithm:
    algorithm: ObjectIdentifier
    parameters: _Pbes2Parameters


@asn1.sequence
class _EncryptedPrivateKeyInfo:
    """RFC 5958, 3."""

    algorithm: _Algorithm
    data: bytes


def encrypt_key(key: ec.EllipticCurvePrivateKey, passphrase: Secret) -> bytes:
    """``key`` as an ``ENCRYPTED PRIVATE KEY`` in PEM."""
    salt, vector = os.urandom(_SALT_BYTES), os.urandom(_BLOCK_BYTES)
    kdf = Scrypt(salt=salt, length=_KEY_BYTES, n=_SCRYPT_COST, r=_SCRYPT_BLOCK, p=_SCRYPT_PARALLEL)
    cipher = Cipher(algorithms.AES256(kdf.derive(passphrase.value)), modes.CBC(vector)).encryptor()
    padder = PKCS7(_BLOCK_BYTES * 8).padder()
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    parameters = _ScryptParameters(
        salt=salt, cost=_SCRYPT_COST, block=_SCRYPT_BLOCK, parallel=_SCRYPT_PARALLEL, key_bytes=_KEY_BYTES
    )
    info = _EncryptedPrivateKeyInfo(
        algorithm=_Algorithm(
            algorithm=_PBES2,
            parameters=_Pbes2Parameters(
                kdf=_Kdf(algorithm=_SCRYPT, parameters=parameters),
                cipher=_Cipher(algorithm=_AES_256_CBC, initialization_vector=vector),
            ),
        ),
        data=cipher.update(padder.update(plain) + padder.finalize()) + cipher.finalize(),
    )
    return _pem(asn1.encode_der(info))


def load_key(path: Path, passphrase: Secret) -> ec.EllipticCurvePrivateKey:
    """The elliptic-curve key in the encrypted PEM file ``path``.

    Raises:
        StorageError: it cannot be read, or other users can read it.
        CredentialError: the passphrase is wrong (or the file was changed).
        PemError: it is damaged, not encrypted, or holds another kind of key.
    """
    check_private(path)
    data = read_capped(path)
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" not in data:
        raise PemError(f"{path} holds no encrypted private key", hint="restore it from a backup")
    try:
        key = load_pem_private_key(data, passphrase.value)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CredentialError(
            f"cannot decrypt {path}: the passphrase is wrong, or the file is damaged", hint="check --passphrase"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PemError(f"{path} holds another kind of key", hint="restore it from a backup")
    return key


def _pem(der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join(
        ["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]
    ).encode()
