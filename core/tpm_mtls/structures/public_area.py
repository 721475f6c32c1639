"""Public areas of TPM objects (TPMT_PUBLIC): what a key is, its Name, its public key.

TPM 2.0 Library part 2 rev 1.59, 12.2.4 (TPMT_PUBLIC), 8.3 (TPMA_OBJECT); part 1, 16 (Names).
"""

from __future__ import annotations

import enum
import hashlib
import os
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPMT_PUBLIC

from tpm_mtls.errors import PemError
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.structures.algorithms import algorithm_name, curve_name

# libtss2 writes its own log lines to stderr; what they say is in our errors, in words. It reads this at its first line.
os.environ.setdefault("TSS2_LOG", "all+NONE")

PUBLIC_LIMIT = 1024
"""Bytes; the largest TPMT_PUBLIC, of an RSA-4096 key with a SHA-512 policy, has less than 700."""

_CURVES: dict[str, type[ec.EllipticCurve]] = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}
_HASHLIB = {
    "sha1": "sha1",
    "sha256": "sha256",
    "sha384": "sha384",
    "sha512": "sha512",
    "sha3-256": "sha3_256",
    "sha3-384": "sha3_384",
    "sha3-512": "sha3_512",
}
_DEFAULT_EXPONENT = 65537  # what 0 in TPMS_RSA_PARMS stands for: part 2, 12.2.3.5


class Attribute(enum.IntFlag):
    """TPMA_OBJECT; the names are the specification's, in lower case."""

    FIXEDTPM = 0x00000002
    STCLEAR = 0x00000004
    FIXEDPARENT = 0x00000010
    SENSITIVEDATAORIGIN = 0x00000020
    USERWITHAUTH = 0x00000040
    ADMINWITHPOLICY = 0x00000080
    NODA = 0x00000400
    ENCRYPTEDDUPLICATION = 0x00000800
    RESTRICTED = 0x00010000
    DECRYPT = 0x00020000
    SIGN = 0x00040000
    X509SIGN = 0x00080000


_WORDS = {
    Attribute.FIXEDTPM: "fixedTPM",
    Attribute.STCLEAR: "stClear",
    Attribute.FIXEDPARENT: "fixedParent",
    Attribute.SENSITIVEDATAORIGIN: "sensitiveDataOrigin",
    Attribute.USERWITHAUTH: "userWithAuth",
    Attribute.ADMINWITHPOLICY: "adminWithPolicy",
    Attribute.NODA: "noDA",
    Attribute.ENCRYPTEDDUPLICATION: "encryptedDuplication",
    Attribute.RESTRICTED: "restricted",
    Attribute.DECRYPT: "decrypt",
    Attribute.SIGN: "sign",
    Attribute.X509SIGN: "x509sign",
}

_STORAGE = Attribute.RESTRICTED | Attribute.DECRYPT
_BORN_INSIDE = Attribute.FIXEDTPM | Attribute.FIXEDPARENT | Attribute.SENSITIVEDATAORIGIN


@dataclass(frozen=True)
class PublicArea:
    """What the TPM tells everybody about an object.

    Attributes:
        data: the marshalled TPMT_PUBLIC, without the size that TPM2B_PUBLIC puts before it.
        name: the object's Name: nameAlg (2 bytes) and the digest of ``data``; empty for nameAlg NULL.
        algorithm: such as ``ecc-p256``, ``rsa-2048``, ``keyedhash``, ``symcipher``.
        name_algorithm: hash of the Name and of the policy, such as ``sha256``.
        attributes: TPMA_OBJECT.
        policy: the authorization policy's digest; empty for none.
        scheme: signing or decryption scheme that the key is bound to, such as ``ecdsa-sha256``; ``null`` for any.
        spki: SubjectPublicKeyInfo, DER; none where there is no asymmetric key of a known kind.
    """

    data: bytes
    name: bytes
    algorithm: str
    name_algorithm: str
    attributes: Attribute
    policy: bytes
    scheme: str
    spki: bytes | None

    def __str__(self) -> str:
        """In short, for messages: the algorithm, the attributes and the Name."""
        return f"{self.algorithm} ({', '.join(self.attribute_words)}), Name {self.name.hex()}"

    @property
    def key_algorithm(self) -> KeyAlgorithm | None:
        """The algorithm, if it is one of those that this project makes TLS keys of."""
        return KeyAlgorithm(self.algorithm) if self.algorithm in list(KeyAlgorithm) else None

    @property
    def attribute_words(self) -> tuple[str, ...]:
        """The set attributes in the specification's spelling and order, such as ``fixedTPM``."""
        return tuple(word for attribute, word in _WORDS.items() if attribute in self.attributes)

    @property
    def is_storage_key(self) -> bool:
        """Whether other keys can lie under it: restricted, decrypt, not sign (part 1, 25.1.5)."""
        return _STORAGE in self.attributes and Attribute.SIGN not in self.attributes

    @property
    def is_signing_key(self) -> bool:
        """Whether TLS can sign with it: asymmetric, sign, not restricted."""
        return (
            self.spki is not None and Attribute.SIGN in self.attributes and not self.attributes & Attribute.RESTRICTED
        )

    @property
    def was_born_inside(self) -> bool:
        """Whether the private key was made by this TPM and can never leave it; false for an imported key."""
        return _BORN_INSIDE in self.attributes


def qualified_name(parent: bytes, public: PublicArea) -> bytes:
    """The qualified name of an object whose parent has the qualified name ``parent``: part 1, 16.

    A hierarchy's qualified name is its handle (4 bytes). nameAlg and digest come back; nothing for nameAlg NULL.
    """
    if not public.name:
        return b""
    digest = hashlib.new(_HASHLIB[public.name_algorithm], parent + public.name).digest()
    return public.name[:2] + digest


def parse_public_area(data: bytes) -> PublicArea:
    """What the marshalled TPMT_PUBLIC ``data`` says.

    It is not verified that any TPM holds such a key.

    Raises:
        PemError: malformed, oversized, with trailing bytes, or with a point that is not on its curve.
    """
    if len(data) > PUBLIC_LIMIT:
        raise _malformed(f"a public area of more than {PUBLIC_LIMIT} bytes")
    try:
        public, used = TPMT_PUBLIC.unmarshal(data)
    except TSS2_Exception as error:
        raise _malformed("malformed public area") from error
    if used != len(data) or bytes(public.marshal()) != data:
        raise _malformed("the public area has bytes that do not belong to it")
    name_algorithm = algorithm_name(int(public.nameAlg))
    kind = algorithm_name(int(public.type))
    return PublicArea(
        data=data,
        name=_name(int(public.nameAlg), name_algorithm, data),
        algorithm=_algorithm(kind, public),
        name_algorithm=name_algorithm,
        attributes=Attribute(int(public.objectAttributes)),
        policy=bytes(public.authPolicy),
        scheme=_scheme(kind, public),
        spki=_spki(kind, public),
    )


def _malformed(what: str) -> PemError:
    return PemError(what, hint="the file is damaged or was made by something else; copy it again, or make a new key")


def _name(identifier: int, algorithm: str, data: bytes) -> bytes:
    if algorithm == "null":
        return b""
    if algorithm not in _HASHLIB:
        raise _malformed(f"the public area's Name algorithm {algorithm} is none that is known")
    return identifier.to_bytes(2, "big") + hashlib.new(_HASHLIB[algorithm], data).digest()


def _algorithm(kind: str, public: TPMT_PUBLIC) -> str:
    if kind == "rsa":
        return f"rsa-{int(public.parameters.rsaDetail.keyBits)}"
    if kind == "ecc":
        return f"ecc-{curve_name(int(public.parameters.eccDetail.curveID))}"
    return kind


def _scheme(kind: str, public: TPMT_PUBLIC) -> str:
    if kind not in {"rsa", "ecc"}:
        return "null"
    scheme = public.parameters.asymDetail.scheme
    name = algorithm_name(int(scheme.scheme))
    if name in {"null", "rsaes"}:
        return name
    return f"{name}-{algorithm_name(int(scheme.details.anySig.hashAlg))}"


def _spki(kind: str, public: TPMT_PUBLIC) -> bytes | None:
    try:
        if kind == "rsa":
            return _rsa_spki(public)
        if kind == "ecc":
            curve = _CURVES.get(curve_name(int(public.parameters.eccDetail.curveID)))
            x, y = (int.from_bytes(bytes(part), "big") for part in (public.unique.ecc.x, public.unique.ecc.y))
            return _der(ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()) if curve else None
    except ValueError as error:
        raise _malformed("the public area holds no valid public key") from error
    return None


def _rsa_spki(public: TPMT_PUBLIC) -> bytes:
    detail = public.parameters.rsaDetail
    modulus = int.from_bytes(bytes(public.unique.rsa), "big")
    if modulus.bit_length() != int(detail.keyBits):
        raise _malformed(f"the public area says {int(detail.keyBits)} bits, its modulus has {modulus.bit_length()}")
    return _der(rsa.RSAPublicNumbers(int(detail.exponent) or _DEFAULT_EXPONENT, modulus).public_key())


def _der(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
