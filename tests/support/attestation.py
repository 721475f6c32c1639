"""What a TPM attests, written by hand: for tests that need it wrong in one place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tpm_mtls.structures import PublicArea, parse_public_area

MAGIC = b"\xffTCG"
CERTIFY, QUOTE = 0x8017, 0x8018
AK_ATTRIBUTES = 0x00050072  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
SOME_NAME = b"\x00\x0b" + bytes(range(32))

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_HASHES = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
_SCHEMES = {"rsassa": 0x0014, "rsapss": 0x0016, "ecdsa": 0x0018, "null": 0x0010}
_CURVES = {"secp256r1": (3, 32), "secp384r1": (4, 48), "secp521r1": (5, 66)}
_DIGESTS = {"sha1": hashes.SHA1, "sha256": hashes.SHA256, "sha384": hashes.SHA384, "sha512": hashes.SHA512}


def number(value: int, size: int = 2) -> bytes:
    return value.to_bytes(size, "big")


def sized(content: bytes) -> bytes:
    return number(len(content)) + content


def attest(
    attested: bytes,
    *,
    magic: bytes = MAGIC,
    kind: int = CERTIFY,
    signer: bytes = SOME_NAME,
    extra: bytes = b"nonce",
    clock: bytes = number(1234, 8) + number(5, 4) + number(6, 4) + b"\x01",
    firmware: int = 7,
) -> bytes:
    """TPMS_ATTEST: part 2, 10.12.12."""
    return magic + number(kind) + sized(signer) + sized(extra) + clock + number(firmware, 8) + attested


def certified(name: bytes = SOME_NAME, qualified: bytes = SOME_NAME) -> bytes:
    """TPMS_CERTIFY_INFO."""
    return sized(name) + sized(qualified)


def quoted(*banks: tuple[int, bytes], digest: bytes = bytes(32)) -> bytes:
    """TPMS_QUOTE_INFO: banks as hash algorithm and bitmap."""
    selections = b"".join(number(algorithm) + number(len(bitmap), 1) + bitmap for algorithm, bitmap in banks)
    return number(len(banks), 4) + selections + sized(digest)


@dataclass(frozen=True)
class AttestationKey:
    """A key in software that is said to be in a TPM.

    Attributes:
        key: the private key.
        scheme: such as ``ecdsa-sha256``.
        attributes: TPMA_OBJECT.
    """

    key: Key
    scheme: str
    attributes: int = AK_ATTRIBUTES

    @property
    def public(self) -> PublicArea:
        """Its public area, as a TPM would tell it."""
        return parse_public_area(public_area(self.key, self.scheme, attributes=self.attributes))

    def sign(self, data: bytes, *, scheme: str | None = None) -> bytes:
        """The bare value of a signature."""
        name, _, digest = (scheme or self.scheme).partition("-")
        algorithm = _DIGESTS[digest]()
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(algorithm))
        pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
        return self.key.sign(data, padding.PKCS1v15() if name == "rsassa" else pss, algorithm)

    def sign_as_tpm(self, data: bytes, *, scheme: str | None = None) -> bytes:
        """A TPMT_SIGNATURE."""
        return tpm_signature(self.sign(data, scheme=scheme), scheme or self.scheme, self.key)


def tpm_signature(value: bytes, scheme: str, key: Key) -> bytes:
    """The bare value as TPMT_SIGNATURE: part 2, 11.3.4."""
    name, _, digest = scheme.partition("-")
    head = number(_SCHEMES[name]) + number(_HASHES[digest])
    if isinstance(key, rsa.RSAPrivateKey):
        return head + sized(value)
    r, s = decode_dss_signature(value)
    size = (key.curve.key_size + 7) // 8
    return head + sized(number(r, size)) + sized(number(s, size))


def public_area(
    key: Key, scheme: str = "null", *, attributes: int = AK_ATTRIBUTES, name: str = "sha256", policy: bytes = b""
) -> bytes:
    """TPMT_PUBLIC of a signing key: part 2, 12.2.4."""
    kind, _, digest = scheme.partition("-")
    details = number(_SCHEMES[kind]) + (number(_HASHES[digest]) if digest else b"")
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    head = number(0x0001 if is_rsa else 0x0023) + number(_HASHES[name]) + number(attributes, 4) + sized(policy)
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers().n
        return (
            head
            + number(0x0010)
            + details
            + number(key.key_size)
            + bytes(4)
            + sized(number(modulus, key.key_size // 8))
        )
    curve, size = _CURVES[key.curve.name]
    point = key.public_key().public_numbers()
    coordinates = sized(number(point.x, size)) + sized(number(point.y, size))
    return head + number(0x0010) + details + number(curve) + number(0x0010) + coordinates


def name_of(area: bytes) -> bytes:
    """The Name of an object with nameAlg SHA-256."""
    return b"\x00\x0b" + hashlib.sha256(area).digest()
