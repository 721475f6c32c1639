"""RSA moduli that look as if the faulty TPM library had made them (CVE-2017-15361)."""

from __future__ import annotations

from math import prod

from tpm_mtls_pki.roca import _PRIMES

_PRIMORIAL = 2 * prod(_PRIMES)


def faulty_modulus(bits: int) -> int:
    """A number of that many bits with the library's fingerprint; nobody needs its factors."""
    return ((1 << bits) - 1) // _PRIMORIAL * _PRIMORIAL - _PRIMORIAL + pow(65537, 12345, _PRIMORIAL)
