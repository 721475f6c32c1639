"""ROCA (CVE-2017-15361): RSA keys that TPMs of one maker generated with little randomness, and that can be factored.

Source: M. Nemec and others, "The Return of Coppersmith's Attack", ACM CCS 2017, section 3.3 (fingerprinting).
"""

from __future__ import annotations

from typing import Final

_GENERATOR: Final = 65537

# Section 3.3: a modulus from the faulty library is a power of 65537 modulo each small prime; by chance that happens to
# one key in 2^28 or fewer.
_PRIMES: Final = (
    *(3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71),
    *(73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167),
)


def is_roca(modulus: int) -> bool:
    """Whether the RSA ``modulus`` has the fingerprint of the faulty library."""
    return all(modulus % prime in _POWERS[prime] for prime in _PRIMES)


def _powers(prime: int) -> frozenset[int]:
    return frozenset(pow(_GENERATOR, exponent, prime) for exponent in range(prime - 1))


_POWERS: Final = {prime: _powers(prime) for prime in _PRIMES}
