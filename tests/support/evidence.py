"""A TPM maker, TPMs in software, and evidence from them that is wrong in one place: what an attacker can make."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from support import attestation
from support.attestation import AttestationKey
from tpm_mtls.certificates import spki
from tpm_mtls.evidence import Evidence
from tpm_mtls.structures import EkTemplate, ek_public, parse_public_area
from tpm_mtls_pki.evidence import Activation, Challenge, EkTrust, Terms, Verdict, judge_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
NONCE = bytes(range(32))
SECRET = bytes(range(100, 132))
TLS_ATTRIBUTES = 0x00040472  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign
EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")

_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_CHIP = {"2.23.133.2.1": "id:54455354", "2.23.133.2.2": "TEST", "2.23.133.2.3": "id:00010002"}


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in wanted for usage in _USAGES})


def tpm_names(**changes: str | None) -> x509.SubjectAlternativeName:
    """The alternative name of an EK certificate; ``manufacturer``, ``model`` and ``version`` may be left out (none)."""
    given = dict(zip(("manufacturer", "model", "version"), _CHIP.items(), strict=True))
    parts = [
        x509.NameAttribute(x509.ObjectIdentifier(oid), value)
        for word, (oid, value) in given.items()
        if changes.get(word, value) is not None
    ]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(parts))])


def ek_extensions(**changes: tuple[x509.ExtensionType, bool] | None) -> list[tuple[x509.ExtensionType, bool]]:
    """Those of an EK certificate of an elliptic-curve key; each may be exchanged or left out by its name."""
    usual: dict[str, tuple[x509.ExtensionType, bool] | None] = {
        "constraints": (x509.BasicConstraints(ca=False, path_length=None), True),
        "usage": (key_usage("key_agreement"), True),
        "purpose": (x509.ExtendedKeyUsage([EK_CERTIFICATE]), False),
        "names": (tpm_names(), True),
    }
    return [each for each in (usual | changes).values() if each is not None]


def ca_extensions(**changes: tuple[x509.ExtensionType, bool] | None) -> list[tuple[x509.ExtensionType, bool]]:
    """Those of a maker's CA."""
    usual: dict[str, tuple[x509.ExtensionType, bool] | None] = {
        "constraints": (x509.BasicConstraints(ca=True, path_length=None), True),
        "usage": (key_usage("key_cert_sign"), True),
    }
    return [each for each in (usual | changes).values() if each is not None]


@dataclass(frozen=True)
class Certifier:
    """A key and its certificate, which certifies others whether it may or not."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def certify(
        self,
        name: str,
        public_key: PublicKey,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        *,
        start: datetime = NOW - DAY,
        end: datetime = NOW + 365 * DAY,
    ) -> x509.Certificate:
        return _sign(self.key, self.certificate.subject, name, public_key, extensions, start, end)

    def below(
        self,
        name: str,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] | None = None,
        **validity: datetime,
    ) -> Certifier:
        """One that this one certifies: a CA, unless ``extensions`` say otherwise."""
        key = new_key()
        wanted = ca_extensions() if extensions is None else extensions
        return Certifier(key, self.certify(name, key.public_key(), wanted, **validity))

    @property
    def der(self) -> bytes:
        return der(self.certificate)


def new_root(name: str = "Maker Root", **validity: datetime) -> Certifier:
    """A maker's root."""
    key = new_key()
    start, end = validity.get("start", NOW - DAY), validity.get("end", NOW + 3650 * DAY)
    return Certifier(key, _sign(key, _name(name), name, key.public_key(), ca_extensions(), start, end))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True)
class SoftwareTpm:
    """What is said to be a TPM: all its keys are here. ``ek_certificate`` is the maker's."""

    ek: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    ak: AttestationKey = field(default_factory=lambda: AttestationKey(new_key(), "ecdsa-sha256"))
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @property
    def ek_spki(self) -> bytes:
        return spki(self.ek.public_key())

    @property
    def ek_hash(self) -> str:
        return hashlib.sha256(self.ek_spki).hexdigest()

    def activation(self, ek_certificate: x509.Certificate | None, **changes: Any) -> Activation:  # noqa: ANN401 - fields
        """What the CA remembers when it was asked with these keys."""
        usual = Activation(SECRET, ek_public(EkTemplate.ECC_P256, self.ek_spki), ek_certificate, (), self.ak.public)
        return dataclasses.replace(usual, **changes)

    def certify(
        self,
        *,
        extra: bytes = hmac.digest(SECRET, NONCE, "sha256"),
        public: bytes | None = None,
        signer: AttestationKey | None = None,
        **fields: Any,  # noqa: ANN401 - those of the structure
    ) -> Evidence:
        """What TPM2_Certify of the TLS key would give."""
        area = public if public is not None else tls_public(self.key)
        attest = attestation.attest(attestation.certified(attestation.name_of(area)), extra=extra, **fields)
        return Evidence(attest, (signer or self.ak).sign_as_tpm(attest), area)


def tls_public(key: attestation.Key, *, attributes: int = TLS_ATTRIBUTES, **fields: Any) -> bytes:  # noqa: ANN401 - those of the structure
    """TPMT_PUBLIC of a TLS key."""
    return attestation.public_area(key, attributes=attributes, **fields)


@dataclass(frozen=True)
class Case:
    """All that `judge_evidence` gets; good until something of it is replaced."""

    evidence: Evidence
    challenge: Challenge | None
    public_key: bytes
    terms: Terms
    now: datetime = NOW

    def but(self, **changes: Any) -> Case:  # noqa: ANN401 - fields
        return dataclasses.replace(self, **changes)

    def asked(self, **changes: Any) -> Case:  # noqa: ANN401 - fields of the activation
        """The same, with another activation."""
        assert self.challenge is not None
        assert self.challenge.activation is not None
        activation = dataclasses.replace(self.challenge.activation, **changes)
        return self.but(challenge=Challenge(self.challenge.nonce, activation))

    def judge(self) -> Verdict:
        return judge_evidence(
            self.evidence, challenge=self.challenge, public_key=self.public_key, terms=self.terms, now=self.now
        )


def good_case(tpm: SoftwareTpm, maker: Certifier) -> Case:
    """Evidence that an attacker with all keys of a genuine TPM could make, and so one that passes."""
    certificate = maker.certify("", tpm.ek.public_key(), ek_extensions())
    return Case(
        evidence=tpm.certify(),
        challenge=Challenge(NONCE, tpm.activation(certificate)),
        public_key=spki(tpm.key.public_key()),
        terms=Terms(trust=EkTrust(roots=(maker.certificate,))),
    )


def verdict(case: Case, **changes: Any) -> Verdict:  # noqa: ANN401 - fields
    """Its verdict, with something replaced."""
    return dataclasses.replace(case.judge(), **changes)


def public_of(key: AttestationKey, **fields: Any) -> Any:  # noqa: ANN401 - those of the structure
    """The attestation key's public area, wrong in one place."""
    return parse_public_area(attestation.public_area(key.key, key.scheme, **fields))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _sign(
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    name: str,
    public_key: PublicKey,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
    start: datetime,
    end: datetime,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(issuer, _name(name), public_key, x509.random_serial_number(), start, end)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())
