"""A CA for one test: certificates for any public key, and identities with software keys.

    ca = TestCa(tmp_path)
    server = ca.software_identity("localhost")                      # Identity: key, certificate, trust
    device = ca.identity(key_reference, public_key, "device-1")     # the same for a key that somebody else made
    expired = ca.certify(public_key, "device-1", not_before=…, not_after=…)

Certificates of both uses (serverAuth, clientAuth) carry the name as CN and as dNSName; ``localhost`` also gets the
loopback addresses.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import itertools
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tpm_mtls.files import PRIVATE_FILE, write_atomic
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes

    from tpm_mtls.key_reference import KeyReference

_DAY = dt.timedelta(days=1)


def now() -> dt.datetime:
    """The present time, in whole seconds."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


class TestCa:
    """A root and an issuing CA below it; ``trust`` is the PEM file with the root, files go into ``folder``."""

    __test__ = False  # not a class of tests

    def __init__(self, folder: Path, name: str = "test") -> None:
        self.folder = folder
        self._prefix = "" if name == "test" else f"{name}-"  # two CAs in one folder do not overwrite each other's files
        self._numbers = itertools.count(1)
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._ca_certificate(f"{name} root", f"{name} root", self._root_key.public_key())
        self.issuing = self._ca_certificate(f"{name} root", f"{name} issuing CA", self._key.public_key())
        self.trust = folder / f"{name}-root.pem"
        write_atomic(self.trust, _pem(self.root))

    def certify(
        self,
        public_key: CertificatePublicKeyTypes,
        name: str,
        *,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> Path:
        """A PEM file with a new certificate for ``public_key`` and the issuing CA's after it."""
        start = not_before or now() - _DAY
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if name == "localhost":
            names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(self.issuing.subject, _name(name), public_key, start, not_after or start + 30 * _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self.folder / f"{self._prefix}{name}-{next(self._numbers)}.cert.pem"
        write_atomic(path, _pem(certificate) + _pem(self.issuing))
        return path

    def identity(self, key: KeyReference, public_key: CertificatePublicKeyTypes, name: str) -> Identity:
        """An identity for a key that is there already, with a new certificate and this CA as its trust."""
        return Identity(key=key, certificate=self.certify(public_key, name), trust=self.trust)

    def software_identity(self, name: str, key: PrivateKeyTypes | None = None) -> Identity:
        """An identity with a software key (P-256 if none is given) in a file."""
        private = key or ec.generate_private_key(ec.SECP256R1())
        path = self.folder / f"{self._prefix}{name}-{next(self._numbers)}.key.pem"
        write_software_key(path, private)
        public = private.public_key()
        assert isinstance(public, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))
        return self.identity(KeyFile(path), public, name)

    def _ca_certificate(self, issuer: str, subject: str, public_key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        return (
            _builder(_name(issuer), _name(subject), public_key, now() - 2 * _DAY, now() + 3650 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._root_key.public_key()), critical=False
            )
            .sign(self._root_key, hashes.SHA256())
        )


def write_software_key(path: Path, key: PrivateKeyTypes, passphrase: bytes | None = None) -> None:
    """Writes a PKCS #8 PEM file, encrypted if there is a passphrase."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    write_atomic(path, pem, mode=PRIVATE_FILE)


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    not_before: dt.datetime,
    not_after: dt.datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public_key,
        serial_number=x509.random_serial_number(),
        not_valid_before=not_before,
        not_valid_after=not_after,
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
