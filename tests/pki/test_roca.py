"""Keys of the faulty TPM library are recognised, others are not."""

from __future__ import annotations

import random
from math import prod

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tpm_mtls.errors import CsrRefusedError
from tpm_mtls_pki.csr import check_public_key
from tpm_mtls_pki.roca import _PRIMES, is_roca

_RANDOM = random.Random(2017)  # noqa: S311 - a test's own keys
_PRIMORIAL = 2 * prod(_PRIMES)


def faulty_prime(bits: int) -> int:
    """A prime as the faulty library made them: k * M + 65537^a mod M (section 2.1 of the paper)."""
    while True:
        start = _RANDOM.getrandbits(bits - _PRIMORIAL.bit_length()) | 1 << (bits - _PRIMORIAL.bit_length() - 1)
        candidate = start * _PRIMORIAL + pow(65537, _RANDOM.getrandbits(60), _PRIMORIAL)
        if pow(2, candidate - 1, candidate) == 1:
            return candidate


def test_a_faulty_key_is_refused() -> None:
    modulus = faulty_prime(1026) * faulty_prime(1026)
    assert is_roca(modulus)
    with pytest.raises(CsrRefusedError, match="CVE-2017-15361"):
        check_public_key(rsa.RSAPublicNumbers(65537, modulus).public_key())


def test_other_keys_are_not() -> None:
    assert not is_roca(rsa.generate_private_key(65537, 2048).public_key().public_numbers().n)
    assert not any(is_roca(_RANDOM.getrandbits(2048) | 1) for _ in range(2000))
