"""Signatures that a TPM made: TPMT_SIGNATURE (TPM 2.0 Library part 2 rev 1.59, 11.3.4), or their bare value.

Accepted are RSASSA, RSAPSS and ECDSA with SHA-256, SHA-384 or SHA-512, and keys of RSA-2048 to RSA-4096, P-256, P-384.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tpm_mtls.errors import EvidenceError
from tpm_mtls.structures.algorithms import algorithm_name
from tpm_mtls.structures.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls.structures.public_area import PublicArea

SIGNATURE_LIMIT = 1024
"""Bytes; that of an RSA-4096 key has 518."""

_PART_LIMIT = 512  # of one part: an RSA-4096 signature
_HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = range(2048, 4097)
_PADDINGS: Final[dict[str, Callable[[hashes.HashAlgorithm], padding.AsymmetricPadding]]] = {
    "rsassa": lambda _: padding.PKCS1v15(),
    # the salt is as long as the digest (FIPS 186-5) or as it can be (older TPMs): part 1, B.7
    "rsapss": lambda digest: padding.PSS(padding.MGF1(digest), padding.PSS.AUTO),
}
_HINT = "make new evidence, with an attestation key of P-256, P-384 or RSA-2048 and SHA-256"


@dataclass(frozen=True)
class Signature:
    """A signature and how it was made.

    Attributes:
        scheme: ``rsassa``, ``rsapss`` or ``ecdsa``.
        hash: ``sha256``, ``sha384`` or ``sha512``.
        value: the RSA signature as long as the modulus (RFC 8017), or the ECDSA one as DER Ecdsa-Sig-Value (RFC 3279).
    """

    scheme: str
    hash: str
    value: bytes


def parse_signature(data: bytes, public: PublicArea) -> Signature:
    """The signature in ``data``, which the key ``public`` is said to have made.

    Two forms are accepted: a TPMT_SIGNATURE as the TPM returns it, and the bare value: an RSA signature, or a DER
    Ecdsa-Sig-Value. Whatever reads as a whole TPMT_SIGNATURE is one. A bare value does not say its scheme and hash:
    they are the key's own, which a restricted key always has. (r and s one after the other are not accepted.)

    Raises:
        EvidenceError: neither form, oversized, trailing bytes, a scheme or hash that is none of the accepted ones or
            not the key's own, or one that does not fit the key's kind.
    """
    if len(data) > SIGNATURE_LIMIT:
        raise EvidenceError(f"a signature of more than {SIGNATURE_LIMIT} bytes", hint=_HINT)
    signature = _tpm_form(data) or _bare_form(data, public)
    if signature.hash not in _HASHES:
        raise EvidenceError(f"a signature with {signature.hash} is not accepted", hint=_HINT)
    own = f"{signature.scheme}-{signature.hash}"
    if public.scheme not in {"null", own}:
        raise EvidenceError(f"the signature is {own}, but its key is for {public.scheme} only", hint=_HINT)
    return signature


def verify_signature(attest: bytes, signature: bytes, public: PublicArea) -> None:
    """Checks that the key ``public`` signed ``attest``.

    1. ``signature`` is well-formed and of an accepted kind (`parse_signature`).
    2. The key is of an accepted kind and size.
    3. The signature verifies over ``attest``.

    The caller must check what kind of key ``public`` is: only of a restricted one the signature says that a TPM made
    ``attest`` (part 1, 25.1.7), and only if it lives in a TPM.

    Args:
        attest: the TPMS_ATTEST (`parse_attest`).
        signature: TPMT_SIGNATURE or the bare value.
        public: the attestation key's public area.

    Raises:
        EvidenceError: a step failed.
    """
    parsed = parse_signature(signature, public)  # 1
    key = load_der_public_key(public.spki) if public.spki is not None else None
    digest = _HASHES[parsed.hash]()
    try:
        if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS and parsed.scheme in _PADDINGS:  # 2
            key.verify(parsed.value, attest, _PADDINGS[parsed.scheme](digest), digest)  # 3
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES) and parsed.scheme == "ecdsa":
            key.verify(parsed.value, attest, ec.ECDSA(digest))
        else:
            raise EvidenceError(f"a {parsed.scheme} signature of {public.algorithm} is not accepted", hint=_HINT)
    except InvalidSignature as error:
        raise EvidenceError("the attestation key did not sign this attestation", hint=_HINT) from error


def _tpm_form(data: bytes) -> Signature | None:
    """``data`` as a TPMT_SIGNATURE; none if it is not one, from its first to its last byte."""
    reader = Reader(data, "signature (TPMT_SIGNATURE)", hint=_HINT)
    try:
        scheme, digest = algorithm_name(reader.number(2)), algorithm_name(reader.number(2))
        parts = [reader.sized(_PART_LIMIT) for _ in range(2 if scheme == "ecdsa" else 1)]
        reader.end()
    except EvidenceError:
        return None
    if scheme == "ecdsa":
        r, s = (int.from_bytes(part, "big") for part in parts)
        return Signature(scheme, digest, encode_dss_signature(r, s))
    return Signature(scheme, digest, parts[0]) if scheme in _PADDINGS else None


def _bare_form(data: bytes, public: PublicArea) -> Signature:
    scheme, _, digest = public.scheme.partition("-")
    if scheme == "ecdsa":
        try:
            decode_dss_signature(data)
        except ValueError as error:
            raise EvidenceError("the signature is neither a TPMT_SIGNATURE nor a DER one", hint=_HINT) from error
    elif scheme not in _PADDINGS:
        raise EvidenceError("the signature does not say its scheme, and neither does its key", hint=_HINT)
    return Signature(scheme, digest, data)
