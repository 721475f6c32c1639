"""The key algorithms that a TLS key in a TPM may have."""

from __future__ import annotations

import enum


class KeyAlgorithm(enum.StrEnum):
    """Algorithms that keys are made of; the values are what users type."""

    ECC_P256 = "ecc-p256"
    ECC_P384 = "ecc-p384"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"

    @property
    def is_ecc(self) -> bool:
        """Whether it signs with ECDSA; RSA otherwise."""
        return self in {KeyAlgorithm.ECC_P256, KeyAlgorithm.ECC_P384}

    @property
    def signature_hash(self) -> str:
        """The hash that goes with it in certificates and requests: ``sha256`` or ``sha384`` (RFC 5480, 4)."""
        return "sha384" if self is KeyAlgorithm.ECC_P384 else "sha256"
