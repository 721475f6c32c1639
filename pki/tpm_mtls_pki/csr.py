"""What the CA takes from a CSR: the public key, after checks. What else it asks for is ignored, and noted.

Sources: PKCS #10 (RFC 2986); key sizes: NIST SP 800-57 part 1 rev 5, 5.6.1 (at least 112 bits of strength).
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from cryptography.x509.oid import NameOID

from tpm_mtls.certificates import parse_csr, spki
from tpm_mtls.device_names import check_device_name
from tpm_mtls.errors import CsrRefusedError, UsageError
from tpm_mtls.evidence import evidence_of_csr
from tpm_mtls.evidence_checks import numbered
from tpm_mtls_pki.roca import is_roca

if TYPE_CHECKING:
    from tpm_mtls.evidence import Evidence
    from tpm_mtls_pki.profiles import LeafKey

_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = range(2048, 4097)
_RSA_EXPONENT = 65537
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

_NOTES = 10  # what a CSR asked for is noted in the audit log: this many lines, each this long
_NOTE_LENGTH = 120

_SAN = "SubjectAlternativeName"
_KEY_HINT = "use a P-256, P-384 or RSA-2048 to RSA-4096 key"


@dataclass(frozen=True)
class CheckedCsr:
    """A CSR that passed `check_csr`.

    Attributes:
        public_key: the key that was proved.
        ignored: what it asked for besides, for the audit log; none of it is in the certificate.
        evidence: what it shows for its key, not verified; none if it shows nothing.
        asked: the device name in its subject; none if there is none that a device can have.
    """

    public_key: LeafKey
    ignored: tuple[str, ...] = ()
    evidence: Evidence | None = None
    asked: str | None = None

    def foreign(self, name: str) -> tuple[str, ...]:
        """What of `ignored` is not just the name that the certificate has anyway."""
        return tuple(note for note in self.ignored if note not in {f"subject CN={name}", f"{_SAN} {name}"})


def check_csr(data: bytes) -> CheckedCsr:
    """Checks the CSR in ``data`` (DER or PEM).

    1. It parses.
    2. Its evidence, if it has any, is well formed (`evidence_of_csr`): part of the evidence's check 5.
    3. Its names and extensions parse (strictly: what nobody can read, nobody can note).
    4. Its key is of an acceptable kind and size (`check_public_key`).
    5. Its self-signature verifies with a SHA-2 digest: whoever asks has the private key. It covers the evidence. With
       evidence, 3 to 5 are part of its check 6.

    Not verified: who asks, what the evidence is worth, and whether the key is somebody else's already. The caller
    checks all three.

    Raises:
        EvidenceRefusedError: a check failed, and there is evidence.
        CsrRefusedError: a check failed, and there is none, or nobody can tell.
    """
    csr = parse_csr(data)  # 1
    with numbered(5):
        evidence = evidence_of_csr(csr)  # 2
    with nullcontext() if evidence is None else numbered(6):
        ignored, public_key = _contents(csr)  # 3
        checked = check_public_key(public_key)  # 4
        _check_signature(csr)  # 5
    return CheckedCsr(checked, ignored, evidence, _asked_name(csr))


def _contents(csr: x509.CertificateSigningRequest) -> tuple[tuple[str, ...], object]:
    """What the CSR asks for, and its key."""
    try:
        return _requests(csr), csr.public_key()
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise CsrRefusedError("the certificate request is malformed", hint="make another one") from error


def check_public_key(public_key: object) -> LeafKey:
    """Returns the key if the CA certifies its kind: P-256, P-384, RSA of 2048 to 4096 bits with exponent 65537.

    RSA keys with the ROCA weakness are refused too.

    Raises:
        CsrRefusedError: it does not.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if not isinstance(public_key.curve, _CURVES):
            raise CsrRefusedError(f"the CA does not certify keys on {public_key.curve.name}", hint=_KEY_HINT)
        return public_key
    if isinstance(public_key, rsa.RSAPublicKey):
        if public_key.key_size not in _RSA_BITS:
            raise CsrRefusedError(f"the CA does not certify RSA keys of {public_key.key_size} bits", hint=_KEY_HINT)
        if public_key.public_numbers().e != _RSA_EXPONENT:
            raise CsrRefusedError("the RSA key has an unusual exponent", hint="use 65537")
        if is_roca(public_key.public_numbers().n):
            raise CsrRefusedError(
                "the RSA key was made by a faulty TPM (CVE-2017-15361) and can be factored",
                hint="update the TPM's firmware, or use an elliptic-curve key",
            )
        return public_key
    raise CsrRefusedError("the CA does not certify that kind of key", hint=_KEY_HINT)


def parse_public_key(data: bytes) -> LeafKey:
    """The public key (SubjectPublicKeyInfo, PEM or DER) in ``data``, of a kind that the CA certifies.

    Raises:
        CsrRefusedError: it is none, or of another kind.
    """
    try:
        key = load_pem_public_key(data) if b"-----BEGIN" in data else load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CsrRefusedError("that is no public key", hint="openssl pkey -pubout writes one") from error
    return check_public_key(key)


def key_digest(public_key: LeafKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, hex: by which the store finds it."""
    return hashlib.sha256(spki(public_key)).hexdigest()


def _check_signature(csr: x509.CertificateSigningRequest) -> None:
    try:
        sound = isinstance(csr.signature_hash_algorithm, _HASHES)
        valid = sound and csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CsrRefusedError("the request's signature cannot be read", hint="sign it with SHA-256") from error
    if not sound:
        raise CsrRefusedError("the request is signed with an unacceptable digest", hint="sign it with SHA-256")
    if not valid:
        raise CsrRefusedError("the request's signature is wrong", hint="it was changed after it was signed")


def _asked_name(csr: x509.CertificateSigningRequest) -> str | None:
    names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        return check_device_name(str(names[0].value)) if len(names) == 1 else None
    except UsageError:
        return None


def _requests(csr: x509.CertificateSigningRequest) -> tuple[str, ...]:
    """What the CSR asks for besides a certificate for its key."""
    notes = [f"subject {csr.subject.rfc4514_string()}"] if list(csr.subject) else []
    notes += [_describe(extension) for extension in csr.extensions]
    return tuple(note[:_NOTE_LENGTH] for note in notes[:_NOTES])


def _describe(extension: x509.Extension[x509.ExtensionType]) -> str:
    value = extension.value
    critical = "critical " if extension.critical else ""
    if isinstance(value, x509.BasicConstraints):
        return f"{critical}BasicConstraints CA:{str(value.ca).upper()}"
    if isinstance(value, x509.SubjectAlternativeName):
        return f"{critical}{_SAN} {' '.join(str(name.value) for name in value)}"
    known = not isinstance(value, x509.UnrecognizedExtension)
    return f"{critical}{type(value).__name__ if known else extension.oid.dotted_string}"
