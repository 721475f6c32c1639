"""A small CA with the project's profiles (device, operator, server, CRL), on ``cryptography`` only, not on ``pki``."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tpm_mtls.device_identity import EKU_ATTESTATION_KEY, EKU_OPERATOR, POLICY_RESTRICTED
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tpm_mtls.device_identity import TpmIdentity

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

DAY = timedelta(days=1)


class DeviceCa:
    """A root and an issuing CA; ``trust`` is a PEM file with the root, then the issuing CA."""

    def __init__(self, folder: Path, name: str = "Test", *, bare: bool = False) -> None:
        """Makes the CA; a ``bare`` one has no key usage, key identifiers and CRL numbers."""
        self._bare = bare
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._root_key = ec.generate_private_key(ec.SECP384R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._ca(f"{name} Root", self._root_key, None)
        self.issuing = self._ca(f"{name} Issuing CA", self._key, self.root)
        self.trust = folder / "ca.cert.pem"
        self.trust.write_bytes(self.root.public_bytes(Encoding.PEM) + self.issuing.public_bytes(Encoding.PEM))
        self.root_only = folder / "root.cert.pem"
        self.root_only.write_bytes(self.root.public_bytes(Encoding.PEM))
        self.crl_file = folder / "ca.crl.pem"
        self._crl_number = 0

    def device(
        self,
        name: str = "sensor-17",
        *,
        names: Sequence[x509.GeneralName] | None = None,
        usages: Iterable[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        begins: datetime | None = None,
        ends: datetime | None = None,
        authority: bool = True,
    ) -> Identity:
        """A device's identity with a software key; the arguments replace what its profile says."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certify(
            key.public_key(),
            name,
            names=names or [x509.DNSName(name)],
            usages=usages,
            begins=begins,
            ends=ends,
            authority=authority,
        )
        return self._identity(name, key, certificate)

    def operator(
        self,
        name: str = "alice@example.com",
        *,
        names: Sequence[x509.GeneralName] | None = None,
        usages: Iterable[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH, EKU_OPERATOR),
    ) -> Identity:
        """An operator's identity with a software key; the arguments replace what the profile says."""
        return self.device(name, names=names or [x509.RFC822Name(name)], usages=usages)

    def server(self, name: str = "localhost") -> Identity:
        """A server's identity with a software key, for ``name`` and 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._identity(name, key, self.certify_server(key.public_key(), name))

    def certify_server(self, public_key: PublicKey, name: str = "localhost") -> x509.Certificate:
        """A server certificate for a key that may lie in a TPM."""
        names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return self.certify(public_key, name, names=names, usages=[ExtendedKeyUsageOID.SERVER_AUTH])

    def certify_attestation_key(
        self,
        public_key: PublicKey,
        tpm: TpmIdentity,
        name: str = "sensor-17",
        *,
        names: Sequence[x509.GeneralName] | None = None,
        usages: Iterable[x509.ObjectIdentifier] = (EKU_ATTESTATION_KEY,),
        policies: Iterable[x509.ObjectIdentifier] = (POLICY_RESTRICTED,),
        begins: datetime | None = None,
        ends: datetime | None = None,
    ) -> x509.Certificate:
        """The certificate of the attestation key in the TPM of the device ``name``; the arguments replace the rest."""
        return self.certify(
            public_key,
            name,
            names=tpm.names() if names is None else names,
            usages=usages,
            begins=begins,
            ends=ends,
            policies=policies,
        )

    def certify(
        self,
        public_key: PublicKey,
        name: str,
        *,
        names: Sequence[x509.GeneralName],
        usages: Iterable[x509.ObjectIdentifier] | None,
        begins: datetime | None = None,
        ends: datetime | None = None,
        authority: bool = True,
        policies: Iterable[x509.ObjectIdentifier] = (),
    ) -> x509.Certificate:
        """A leaf certificate by the issuing CA."""
        now = datetime.now(UTC).replace(microsecond=0)
        builder = _certificate(name, public_key, self.issuing.subject, begins or now - DAY, ends or now + 90 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
        builder = builder.add_extension(identifier, critical=False)
        if authority:
            builder = builder.add_extension(_authority(self._key), critical=False)
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if asserted := [x509.PolicyInformation(policy, None) for policy in policies]:
            builder = builder.add_extension(x509.CertificatePolicies(asserted), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def chain(self, leaf: x509.Certificate, name: str) -> Path:
        """A PEM file with ``leaf`` and the issuing CA."""
        path = self.folder / f"{name}.cert.pem"
        path.write_bytes(leaf.public_bytes(Encoding.PEM) + self.issuing.public_bytes(Encoding.PEM))
        return path

    def crl(
        self,
        *revoked: int,
        this_update: datetime | None = None,
        next_update: datetime | None = None,
        number: int | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        entry_extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        hash_algorithm: hashes.SHA256 | hashes.SHA3_256 | None = None,
    ) -> bytes:
        """A CRL (DER) of the issuing CA that lists the serial numbers ``revoked``; each has a higher number."""
        self._crl_number += 1
        now = datetime.now(UTC).replace(microsecond=0)
        builder = x509.CertificateRevocationListBuilder(
            self.issuing.subject, this_update or now - timedelta(minutes=1), next_update or now + DAY
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder(serial, now - timedelta(minutes=2))
            for value, critical in entry_extensions:
                entry = entry.add_extension(value, critical=critical)
            builder = builder.add_revoked_certificate(entry.build())
        builder = builder.add_extension(_authority(self._key), critical=False)
        if not self._bare:
            builder = builder.add_extension(x509.CRLNumber(number or self._crl_number), critical=False)
        for value, critical in extensions:
            builder = builder.add_extension(value, critical=critical)
        return builder.sign(self._key, hash_algorithm or hashes.SHA256()).public_bytes(Encoding.DER)

    def publish_crl(self, *revoked: int) -> Path:
        """Writes the CRL file anew, atomically, as ``pki`` does."""
        temporary = self.crl_file.with_suffix(".tmp")
        temporary.write_bytes(x509.load_der_x509_crl(self.crl(*revoked)).public_bytes(Encoding.PEM))
        return temporary.replace(self.crl_file)

    def _identity(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Identity:
        path = self.folder / f"{name}.key.pem"
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Identity(key=KeyFile(path), certificate=self.chain(certificate, name), trust=self.trust)

    def _ca(self, name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None) -> x509.Certificate:
        now = datetime.now(UTC).replace(microsecond=0)
        signer = key if issuer is None else self._root_key
        issuer_name = _name(name) if issuer is None else issuer.subject
        builder = _certificate(name, key.public_key(), issuer_name, now - 30 * DAY, now + 3650 * DAY)
        constraints = x509.BasicConstraints(ca=True, path_length=None if issuer is None else 0)
        builder = builder.add_extension(constraints, critical=True)
        if not self._bare:
            builder = builder.add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            builder = builder.add_extension(_authority(signer), critical=False)
            identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        return builder.sign(signer, hashes.SHA384())


def leaf(identity: Identity) -> x509.Certificate:
    """The identity's own certificate."""
    return x509.load_pem_x509_certificates(identity.certificate.read_bytes())[0]


def serial(identity: Identity) -> int:
    """The serial number of the identity's certificate."""
    return leaf(identity).serial_number


def _certificate(
    name: str, public_key: PublicKey, issuer: x509.Name, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(issuer, _name(name), public_key, x509.random_serial_number(), begins, ends)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
