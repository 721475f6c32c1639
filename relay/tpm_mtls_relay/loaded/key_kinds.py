"""Keys, signatures and algorithms in words: what a command is about, and how long a chip needs for it.

Algorithm identifiers: TCG Algorithm Registry rev 1.32, tables 3 and 4.
"""

from __future__ import annotations

from tpm_mtls_relay.loaded import public_area
from tpm_mtls_relay.loaded.public_area import PublicArea
from tpm_mtls_relay.messages.reader import Reader

_NULL = 0x0010
_RSAES = 0x0015
_RSA_SIGNATURES = (0x0014, 0x0016)
_ECC_SIGNATURES = (0x0018, 0x001A, 0x001B, 0x001C)
_ECDAA = 0x001A
_HMAC = 0x0005

_ALGORITHMS = {
    0x0001: "rsa", 0x0004: "sha1", 0x0005: "hmac", 0x0006: "aes", 0x0008: "keyedhash", 0x000A: "xor", 0x000B: "sha256",
    0x000C: "sha384", 0x000D: "sha512", 0x0010: "null", 0x0012: "sm3-256", 0x0013: "sm4", 0x0014: "rsassa",
    0x0015: "rsaes", 0x0016: "rsapss", 0x0017: "oaep", 0x0018: "ecdsa", 0x0019: "ecdh", 0x001A: "ecdaa",
    0x001B: "sm2", 0x001C: "ecschnorr", 0x0023: "ecc", 0x0025: "symcipher", 0x0026: "camellia", 0x0027: "sha3-256",
    0x0028: "sha3-384", 0x0029: "sha3-512",
}  # fmt: skip

_CURVES = {
    0x0001: "p192", 0x0002: "p224", 0x0003: "p256", 0x0004: "p384", 0x0005: "p521", 0x0010: "bn-p256",
    0x0011: "bn-p638", 0x0020: "sm2-p256",
}  # fmt: skip

_CURVES_BY_BYTES = ((32, "ecc-p256"), (48, "ecc-p384"), (66, "ecc-p521"))


def algorithm_word(identifier: int) -> str:
    """The name of a TPM_ALG_ID, such as ``sha256``; an unknown one as a hexadecimal number."""
    return _ALGORITHMS.get(identifier, f"{identifier:#06x}")


def curve_word(identifier: int) -> str:
    """The name of a TPM_ECC_CURVE, such as ``p256``; an unknown one as a hexadecimal number."""
    return _CURVES.get(identifier, f"{identifier:#06x}")


def kind_of_public(public: bytes) -> str:
    """What a TPMT_PUBLIC describes, such as ``ecc-p256``, ``rsa-2048``, ``keyedhash`` or ``symcipher``.

    Raises:
        UnreadableError: it is none.
    """
    kind = PublicArea(public).type
    if kind not in {public_area.RSA, public_area.ECC}:
        return algorithm_word(kind)
    reader = Reader(public, 8)  # type, Name algorithm, attributes
    reader.sized()  # policy
    if reader.number(2) != _NULL:  # symmetric algorithm; of a storage key
        reader.take(4)  # key size, mode
    scheme = reader.number(2)
    if scheme not in {_NULL, _RSAES}:
        reader.take(4 if scheme == _ECDAA else 2)
    if kind == public_area.RSA:
        return f"rsa-{reader.number(2)}"
    return f"ecc-{curve_word(reader.number(2))}"


def kind_of_signature(reader: Reader) -> tuple[str, str]:
    """Scheme and key of the TPMT_SIGNATURE that ``reader`` comes to, such as ``ecdsa-sha256`` and ``ecc-p256``.

    The curve is told from the size of the numbers; empty where that says nothing.

    Raises:
        UnreadableError: it is none.
    """
    identifier = reader.number(2)
    scheme = f"{algorithm_word(identifier)}-{algorithm_word(reader.number(2))}"
    if identifier in _RSA_SIGNATURES:
        return scheme, f"rsa-{8 * len(reader.sized())}"
    if identifier in _ECC_SIGNATURES:
        longest = max(len(reader.sized()), len(reader.sized()))
        return scheme, next((kind for size, kind in _CURVES_BY_BYTES if longest <= size), "")
    return scheme, "keyedhash" if identifier == _HMAC else ""
