"""Certificate chains: read, and the leaf's validity."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_long
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tpm_mtls.errors import CertificateExpiredError, CertificateNotYetValidError, PemError
from tpm_mtls.files import read_capped
from tpm_mtls.openssl.library import openssl, take_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _BrokenDownTime(ctypes.Structure):
    """``struct tm`` of the C library; OpenSSL fills in UTC."""

    _fields_ = (
        *((name, c_int) for name in ("sec", "min", "hour", "mday", "mon", "year", "wday", "yday", "isdst")),
        ("gmtoff", c_long),
        ("zone", c_char_p),
    )


@dataclass(frozen=True)
class Chain:
    """A certificate chain, borrowed inside `read_chain`.

    Attributes:
        leaf: address of the first certificate (``X509 *``).
        issuers: address of a stack of the others (``STACK_OF(X509) *``).
        public_key: address of the leaf's public key (``EVP_PKEY *``).
        not_before: start of the leaf's validity.
        not_after: end of it.
    """

    leaf: int
    issuers: int
    public_key: int
    not_before: datetime
    not_after: datetime


@contextmanager
def read_chain(path: Path) -> Iterator[Chain]:
    """The certificates in the PEM file ``path``, freed after the block.

    Raises:
        PemError: there is none, one is cut off or damaged, or the file is oversized.
        StorageError: the file cannot be read.
    """
    data = read_capped(path)
    library = openssl()
    library.ERR_clear_error()
    bio = library.BIO_new_mem_buf(data, len(data))
    issuers = library.OPENSSL_sk_new_null()
    read: list[int] = []
    try:
        # with a password given, OpenSSL does not ask for one at the terminal
        while certificate := library.PEM_read_bio_X509(bio, None, None, b""):
            read.append(certificate)
        errors = take_errors()
        if not read or [error.reason for error in errors] != ["no start line"]:
            raise PemError(
                f"{path} holds no certificate in PEM form, or a damaged one",
                hint="expected the own certificate first, then its issuers; copy the file again",
            )
        for certificate in read[1:]:
            library.OPENSSL_sk_push(issuers, certificate)
        public_key = library.X509_get0_pubkey(read[0])
        not_before = time_of(library.X509_get0_notBefore(read[0]))
        not_after = time_of(library.X509_get0_notAfter(read[0]))
        if not public_key or not_before is None or not_after is None:
            raise PemError(
                f"{path} is no usable certificate: {'its key' if not public_key else 'its validity'} is not understood",
                hint="get a new one from the CA",
            )
        yield Chain(read[0], issuers, public_key, not_before, not_after)
    finally:
        library.OPENSSL_sk_free(issuers)
        for certificate in read:
            library.X509_free(certificate)
        library.BIO_free(bio)
        library.ERR_clear_error()


def time_of(asn1: int) -> datetime | None:
    """An ``ASN1_TIME``; none if it is not understood."""
    parts = _BrokenDownTime()
    if openssl().ASN1_TIME_to_tm(asn1, ctypes.byref(parts)) != 1:
        return None
    return datetime(parts.year + 1900, parts.mon + 1, parts.mday, parts.hour, parts.min, parts.sec, tzinfo=UTC)


def check_validity(path: Path, not_before: datetime, not_after: datetime, *, now: datetime) -> None:
    """Refuses a certificate whose validity has not begun or has ended (RFC 5280, 4.1.2.5: both ends included).

    Raises:
        CertificateNotYetValidError: ``now`` is before ``not_before``.
        CertificateExpiredError: ``now`` is after ``not_after``.
    """
    if now < not_before:
        raise CertificateNotYetValidError(
            f"the certificate {path} is not valid before {not_before:%Y-%m-%d %H:%M:%S} UTC; "
            f"this machine's clock says {now.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
            hint="set the clock (timedatectl shows it); without a battery-backed clock wait for network time",
        )
    if now > not_after:
        raise CertificateExpiredError(
            f"the certificate {path} expired at {not_after:%Y-%m-%d %H:%M:%S} UTC",
            hint="renew it, or enroll again; if the date is wrong, set this machine's clock",
        )
