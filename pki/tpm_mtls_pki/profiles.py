"""What certificates contain: the one door. Every extension and its criticality is stated here (RFC 5280, 4.2).

===================  ========  ======================  ======================  ====================================
extension            critical  root                    issuing                 device, server, attestation, operator
===================  ========  ======================  ======================  ====================================
basicConstraints     yes       CA, path length 1       CA, path length 0       no CA
keyUsage             yes       keyCertSign, cRLSign    keyCertSign, cRLSign    digitalSignature
extKeyUsage          no        -                       -                       clientAuth, serverAuth, AIKCertificate
subjectAltName       no        -                       -                       from the CA's policy
certificatePolicies  no        -                       anyPolicy               what was verified about the TPM, if so
subjectKeyId         no        method 1 of 4.2.1.2     the same                the same
authorityKeyId       no        its own                 the root's              the issuing CA's
crlDistribution      no        -                       the root's CRL          the issuing CA's CRL
===================  ========  ======================  ======================  ====================================

The device's certificate is an LDevID (IEEE 802.1AR-2018, 8): beside its name it has the TPM's identity as
hardwareModuleName and permanentIdentifier, where the TPM was verified. An operator's is for clientAuth and for this
project's own usage; its alternative name is a mail address (rfc822Name).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import CertificatePoliciesOID, ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from tpm_mtls.device_identity import EKU_ATTESTATION_KEY, EKU_OPERATOR

if TYPE_CHECKING:
    from datetime import datetime
    from ipaddress import IPv4Address, IPv6Address

LeafKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""Public keys that the CA certifies."""

BACKDATE = timedelta(minutes=5)
"""Validity begins this long before the issuance: the clocks of devices without a battery run behind."""

ROOT_LIFETIME = timedelta(days=20 * 365)
ISSUING_LIFETIME = timedelta(days=10 * 365)

ISSUING_CRL = "issuing.crl"
ROOT_CRL = "root.crl"
"""Last parts of the two CRLs' URLs."""

_ANY_POLICY = CertificatePoliciesOID.ANY_POLICY


@dataclass(frozen=True)
class Profile:
    """What tells one kind of leaf certificate from another.

    Attributes:
        name: by which it is asked for.
        extended_key_usages: its purposes.
        lifetime: from now to the end; cut to the issuing CA's.
    """

    name: str
    extended_key_usages: tuple[ObjectIdentifier, ...]
    lifetime: timedelta


DEVICE: Final = Profile("device", (ExtendedKeyUsageOID.CLIENT_AUTH,), timedelta(days=90))
SERVER: Final = Profile("server", (ExtendedKeyUsageOID.SERVER_AUTH,), timedelta(days=90))
OPERATOR: Final = Profile("operator", (ExtendedKeyUsageOID.CLIENT_AUTH, EKU_OPERATOR), timedelta(days=90))
ATTESTATION: Final = Profile("attestation", (EKU_ATTESTATION_KEY,), timedelta(days=90))
PROFILES: Final = {profile.name: profile for profile in (DEVICE, SERVER, OPERATOR)}
"""Those that an administrator can ask for; an attestation key's certificate is issued on evidence only. EST issues
neither servers' nor operators'."""


@dataclass(frozen=True)
class Subject:
    """Whom a leaf certificate is for, as the CA's policy says.

    Attributes:
        name: common name.
        dns: dNSName alternative names, lower case.
        addresses: iPAddress alternative names.
        mail: rfc822Name alternative names.
        hardware: otherName alternative names that tell its TPM.
        policies: what was verified about the key and its TPM (certificatePolicies).
    """

    name: str
    dns: tuple[str, ...]
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    mail: tuple[str, ...] = ()
    hardware: tuple[x509.OtherName, ...] = ()
    policies: tuple[ObjectIdentifier, ...] = ()

    @classmethod
    def device(
        cls, name: str, *, hardware: tuple[x509.OtherName, ...] = (), policies: tuple[ObjectIdentifier, ...] = ()
    ) -> Subject:
        """A device: its name is its common name and its one dNSName."""
        return cls(name=name, dns=(name,), hardware=hardware, policies=policies)

    @classmethod
    def operator(cls, name: str) -> Subject:
        """An operator: the mail address is the common name and the one rfc822Name."""
        return cls(name=name, dns=(), mail=(name,))


@dataclass(frozen=True)
class Issuer:
    """A CA's certificate with its key, unlocked.

    Attributes:
        certificate: its certificate.
        key: the private key.
        crl_url: where its CRL will be; none leaves the distribution point out.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    crl_url: str | None


def build_root(name: str, key: ec.EllipticCurvePrivateKey, *, now: datetime) -> x509.Certificate:
    """The self-signed root certificate of the CA called ``name``."""
    subject = _common_name(f"{name} Root")
    builder = _builder(subject, key.public_key(), now=now, not_after=now + ROOT_LIFETIME)
    builder = _add_ca_extensions(builder.issuer_name(subject), path_length=1)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(authority, critical=False)
    return builder.sign(key, hash_for(key))


def build_issuing(
    name: str, public_key: ec.EllipticCurvePublicKey, issuer: Issuer, *, now: datetime
) -> x509.Certificate:
    """The issuing CA's certificate, signed by the root ``issuer``; it may certify leaves only."""
    not_after = min(now + ISSUING_LIFETIME, issuer.certificate.not_valid_after_utc)
    builder = _builder(_common_name(f"{name} Issuing"), public_key, now=now, not_after=not_after)
    builder = _add_ca_extensions(builder, path_length=0)
    # a leaf's policies count for whoever asks for them only if its CA may assert them (RFC 5280, 6.1.3 d)
    builder = builder.add_extension(_policies((_ANY_POLICY,)), critical=False)
    return _sign(builder, issuer)


def build_leaf(
    profile: Profile, subject: Subject, public_key: LeafKey, issuer: Issuer, *, now: datetime
) -> x509.Certificate:
    """A leaf certificate of ``profile`` for ``public_key``, signed by ``issuer``; it never outlives its issuer."""
    not_after = min(now + profile.lifetime, issuer.certificate.not_valid_after_utc)
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in subject.dns]
    names += [x509.IPAddress(address) for address in subject.addresses]
    names += [x509.RFC822Name(address) for address in subject.mail]
    names += subject.hardware
    builder = _builder(_common_name(subject.name), public_key, now=now, not_after=not_after)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(profile.extended_key_usages), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if subject.policies:
        builder = builder.add_extension(_policies(subject.policies), critical=False)
    return _sign(builder, issuer)


def hash_for(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """The digest as strong as the signing key: SHA-384 for P-384, else SHA-256."""
    return hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()


def crl_urls(base: str | None) -> tuple[str | None, str | None]:
    """The URLs of the root's and of the issuing CA's CRL, below ``base``."""
    if base is None:
        return None, None
    return f"{base.rstrip('/')}/{ROOT_CRL}", f"{base.rstrip('/')}/{ISSUING_CRL}"


def _sign(builder: x509.CertificateBuilder, issuer: Issuer) -> x509.Certificate:
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    builder = builder.issuer_name(issuer.certificate.subject).add_extension(authority, critical=False)
    if issuer.crl_url is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(issuer.crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return builder.sign(issuer.key, hash_for(issuer.key))


def _builder(subject: x509.Name, public_key: LeafKey, *, now: datetime, not_after: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).public_key(public_key)
    builder = builder.serial_number(_random_serial())
    builder = builder.not_valid_before(now - BACKDATE).not_valid_after(not_after)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _random_serial() -> int:
    """158 random bits in always 20 bytes, positive (RFC 5280, 4.1.2.2)."""
    return 1 << 158 | secrets.randbits(158)


def _add_ca_extensions(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.add_extension(_key_usage(certificate_signing=True), critical=True)


def _key_usage(*, digital_signature: bool = False, certificate_signing: bool = False) -> x509.KeyUsage:
    """RFC 5280, 4.2.1.3. No keyEncipherment, for RSA neither: TLS 1.3, and 1.2 with ephemeral keys, only sign."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_signing,
        crl_sign=certificate_signing,
        encipher_only=False,
        decipher_only=False,
    )


def _policies(identifiers: tuple[ObjectIdentifier, ...]) -> x509.CertificatePolicies:
    return x509.CertificatePolicies([x509.PolicyInformation(identifier, None) for identifier in identifiers])


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
