"""The names of TCG algorithm identifiers."""

from __future__ import annotations

ALGORITHM_NAMES = {
    0x0001: "rsa",
    0x0003: "tdes",
    0x0004: "sha1",
    0x0005: "hmac",
    0x0006: "aes",
    0x0007: "mgf1",
    0x0008: "keyedhash",
    0x000A: "xor",
    0x000B: "sha256",
    0x000C: "sha384",
    0x000D: "sha512",
    0x0010: "null",
    0x0012: "sm3-256",
    0x0013: "sm4",
    0x0014: "rsassa",
    0x0015: "rsaes",
    0x0016: "rsapss",
    0x0017: "oaep",
    0x0018: "ecdsa",
    0x0019: "ecdh",
    0x001A: "ecdaa",
    0x001B: "sm2",
    0x001C: "ecschnorr",
    0x001D: "ecmqv",
    0x0020: "kdf1-sp800-56a",
    0x0021: "kdf2",
    0x0022: "kdf1-sp800-108",
    0x0023: "ecc",
    0x0025: "symcipher",
    0x0026: "camellia",
    0x0027: "sha3-256",
    0x0028: "sha3-384",
    0x0029: "sha3-512",
    0x003F: "cmac",
    0x0040: "ctr",
    0x0041: "ofb",
    0x0042: "cbc",
    0x0043: "cfb",
    0x0044: "ecb",
}
"""TPM_ALG_ID: TCG Algorithm Registry rev 1.32, table 3."""

CURVE_NAMES = {
    0x0001: "p192",
    0x0002: "p224",
    0x0003: "p256",
    0x0004: "p384",
    0x0005: "p521",
    0x0010: "bn-p256",
    0x0011: "bn-p638",
    0x0020: "sm2-p256",
}
"""TPM_ECC_CURVE: TCG Algorithm Registry rev 1.32, table 4."""


def algorithm_name(identifier: int) -> str:
    """The name of a TPM_ALG_ID, such as ``sha256``; an unknown one as a hexadecimal number."""
    return ALGORITHM_NAMES.get(identifier, f"{identifier:#06x}")


def curve_name(identifier: int) -> str:
    """The name of a TPM_ECC_CURVE, such as ``p256``; an unknown one as a hexadecimal number."""
    return CURVE_NAMES.get(identifier, f"{identifier:#06x}")
