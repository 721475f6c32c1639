"""Private keys that exist outside the TPM: read to be imported, or a device's own where it has no TPM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from tpm_mtls.certificates import spki
from tpm_mtls.errors import CredentialError, PemError, UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import KeyFile

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.authorization import Secret

_EXPONENT = 65537  # the only RSA exponent that every TPM takes: part 2, 12.2.3.5


@dataclass(frozen=True)
class SoftwareKey:
    """A private key in this process's memory.

    Attributes:
        private: the key.
        algorithm: one that TLS keys in a TPM may have.
    """

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)
    algorithm: KeyAlgorithm

    @property
    def spki(self) -> bytes:
        """The public key, DER SPKI."""
        return spki(self.private.public_key())

    def to_pem(self) -> bytes:
        """The private key itself, not encrypted (PKCS #8): for a file that nobody else can read."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def request(self, device: str) -> bytes:
        """A certificate request (PKCS #10, DER) with the common name ``device``, signed with the key."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return builder.sign(self.private, SHA256()).public_bytes(Encoding.DER)


def make_software_key() -> SoftwareKey:
    """A new P-256 key."""
    return SoftwareKey(ec.generate_private_key(ec.SECP256R1()), KeyAlgorithm.ECC_P256)


def read_software_key(path: Path, *, passphrase: Secret | None = None) -> SoftwareKey:
    """The private key in the PEM file ``path``, decrypted with ``passphrase`` if it is encrypted.

    Raises:
        CredentialError: it is a TPM's key already, or of a kind that TLS keys in a TPM do not have.
        PemError: it is no complete private key, or the passphrase is wrong.
        UsageError: the passphrase is missing, or the key is not encrypted.
        StorageError: it cannot be read.
    """
    if KeyFile(path).is_tss2():
        raise CredentialError(f"{path} is a key of a TPM already", hint="only software keys can be imported")
    return parse_software_key(read_capped(path), path, passphrase=passphrase)


def parse_software_key(pem: bytes, path: Path, *, passphrase: Secret | None = None) -> SoftwareKey:
    """The private key in ``pem``, which is the content of ``path``.

    Raises:
        CredentialError, PemError, UsageError: as `read_software_key`.
    """
    try:
        key = load_pem_private_key(pem, passphrase.value if passphrase else None)
    except TypeError as error:
        if passphrase is None:
            raise UsageError(f"{path} is encrypted", hint="give --passphrase prompt, file:F or credential:N") from error
        raise UsageError(f"{path} is not encrypted", hint="leave --passphrase out") from error
    except ValueError as error:
        what = "is damaged, or the passphrase is wrong" if passphrase else "is damaged"
        raise PemError(f"{path} {what}", hint="check it with: openssl pkey -noout -in") from error
    except UnsupportedAlgorithm as error:
        raise _unsupported(path, "an unknown algorithm") from error
    return _supported(key, path)


def describe_software_key(path: Path) -> dict[str, str]:
    """What ``keygen show`` tells of the software key in ``path``.

    Raises:
        CredentialError: it is encrypted, or of an unknown kind.
        PemError, StorageError: it is damaged, or cannot be read.
    """
    try:
        key = read_software_key(path)
    except UsageError as error:
        hint = f"openssl shows its public key: openssl pkey -in {path} -pubout"
        raise CredentialError(f"{path} is an encrypted software key", hint=hint) from error
    public = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    role = "software key: it can be copied"
    return {"key": str(path), "role": role, "algorithm": key.algorithm, "public_key": public}


def _supported(key: object, path: Path) -> SoftwareKey:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        name = {"secp256r1": KeyAlgorithm.ECC_P256, "secp384r1": KeyAlgorithm.ECC_P384}.get(key.curve.name)
        if name is None:
            raise _unsupported(path, f"curve {key.curve.name}")
        return SoftwareKey(key, name)
    if isinstance(key, rsa.RSAPrivateKey):
        name = {2048: KeyAlgorithm.RSA_2048, 3072: KeyAlgorithm.RSA_3072}.get(key.key_size)
        if name is None or key.public_key().public_numbers().e != _EXPONENT:
            raise _unsupported(path, f"RSA with {key.key_size} bits and exponent {key.public_key().public_numbers().e}")
        return SoftwareKey(key, name)
    raise _unsupported(path, type(key).__name__.removesuffix("PrivateKey"))


def _unsupported(path: Path, what: str) -> CredentialError:
    return CredentialError(
        f"{path} holds a key that cannot be imported: {what}",
        hint=f"possible are {', '.join(KeyAlgorithm)}, RSA with the exponent {_EXPONENT}",
    )
