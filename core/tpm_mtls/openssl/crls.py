"""Certificate revocation lists (RFC 5280, 5): read from PEM or DER, with what has to be known before they are used."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import PemError
from tpm_mtls.openssl.certificates import time_of
from tpm_mtls.openssl.library import openssl, take_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_CTRL_PENDING = 10  # BIO_CTRL_PENDING, behind BIO_pending
_CRL_NUMBER, _AUTHORITY_KEY, _DELTA_CRL = 88, 90, 140  # NID_crl_number, NID_authority_key_identifier, NID_delta_crl
_SHA_2 = {672, 673, 674}  # NID_sha256, NID_sha384, NID_sha512
_INTEGER = 0x02  # the tag in DER
_NAME_SIZE = 200  # bytes

_HINT = "expected the CA's list in PEM or DER form; copy the file again"


@dataclass(frozen=True)
class Crl:
    """One list, borrowed inside `read_crls`. Its signature is not verified.

    Attributes:
        pointer: address of the ``X509_CRL``.
        issuer: the CA's name (DER) and, where the list has it, its key's identifier: whose list it is.
        issuer_name: the name, for a person.
        number: cRLNumber (RFC 5280, 5.2.3); 0 when absent.
        this_update: when it was issued.
        next_update: when the next one is due.
        is_delta: whether it says only what has changed since another (5.2.4).
        is_sha_2: whether it is signed with SHA-256, SHA-384 or SHA-512.
    """

    pointer: int
    issuer: tuple[bytes, bytes | None]
    issuer_name: str
    number: int
    this_update: datetime
    next_update: datetime
    is_delta: bool
    is_sha_2: bool


@contextmanager
def read_crls(data: bytes) -> Iterator[list[Crl]]:
    """The lists in ``data``, one or more, freed after the block.

    Args:
        data: all in PEM form, where what is between them is skipped, or all in DER form, one right after the other.

    Raises:
        PemError: there is none, one is cut off or damaged, or does not say when the next one is due.
    """
    library = openssl()
    library.ERR_clear_error()
    bio = library.BIO_new_mem_buf(data, len(data))
    pointers: list[int] = []
    try:
        complete = _read_pem(bio, pointers) if b"-----BEGIN " in data else _read_der(bio, pointers)
        if not pointers or not complete:
            raise _damaged()
        yield [_describe(pointer) for pointer in pointers]
    finally:
        for pointer in pointers:
            library.X509_CRL_free(pointer)
        library.BIO_free(bio)
        library.ERR_clear_error()


def is_signed_by(crl: Crl, certificate: int) -> bool:
    """Whether the key of ``certificate`` (``X509 *``) has signed it."""
    library = openssl()
    signed: bool = library.X509_CRL_verify(crl.pointer, library.X509_get0_pubkey(certificate)) == 1
    library.ERR_clear_error()
    return signed


def is_by(crl: Crl, certificate: int) -> bool:
    """Whether its issuer has the name of ``certificate`` (``X509 *``)."""
    library = openssl()
    issuer = library.X509_CRL_get_issuer(crl.pointer)
    return bool(library.X509_NAME_cmp(issuer, library.X509_get_subject_name(certificate)) == 0)


def lists(crl: Crl, certificate: int) -> bool:
    """Whether it names ``certificate`` (``X509 *``), by serial number and issuer, as revoked."""
    entry = ctypes.c_void_p()
    return bool(openssl().X509_CRL_get0_by_cert(crl.pointer, ctypes.byref(entry), certificate) == 1)


def subject_of(certificate: int) -> str:
    """The subject of ``certificate`` (``X509 *``) for a person, such as ``/CN=Example Root``."""
    return _text(openssl().X509_get_subject_name(certificate))


def _text(name: int) -> str:
    buffer = ctypes.create_string_buffer(_NAME_SIZE)
    openssl().X509_NAME_oneline(name, buffer, _NAME_SIZE)  # what is not ASCII is escaped
    return buffer.value.decode("ascii")


def _read_pem(bio: int, pointers: list[int]) -> bool:
    # with a password given, OpenSSL does not ask for one at the terminal
    while pointer := openssl().PEM_read_bio_X509_CRL(bio, None, None, b""):
        pointers.append(pointer)
    return [error.reason for error in take_errors()] == ["no start line"]


def _read_der(bio: int, pointers: list[int]) -> bool:
    library = openssl()
    while library.BIO_ctrl(bio, _CTRL_PENDING, 0, None) > 0:
        pointer = library.d2i_X509_CRL_bio(bio, None)
        if not pointer:
            return False
        pointers.append(pointer)
    return True


def _describe(pointer: int) -> Crl:
    library = openssl()
    issuer = library.X509_CRL_get_issuer(pointer)
    this_update = time_of(library.X509_CRL_get0_lastUpdate(pointer))
    due = library.X509_CRL_get0_nextUpdate(pointer)
    next_update = time_of(due) if due else None  # for none, OpenSSL would take the present time
    if this_update is None or next_update is None:
        raise PemError(f"the list of {_text(issuer)} does not say when the next one is due", hint=_HINT)
    digest = ctypes.c_int()
    library.OBJ_find_sigid_algs(library.X509_CRL_get_signature_nid(pointer), ctypes.byref(digest), None)
    return Crl(
        pointer=pointer,
        issuer=(_name_der(issuer), _extension(pointer, _AUTHORITY_KEY)),
        issuer_name=_text(issuer),
        number=_number(_extension(pointer, _CRL_NUMBER)),
        this_update=this_update,
        next_update=next_update,
        is_delta=_extension(pointer, _DELTA_CRL) is not None,
        is_sha_2=digest.value in _SHA_2,
    )


def _name_der(name: int) -> bytes:
    data, length = ctypes.c_void_p(), ctypes.c_size_t()
    openssl().X509_NAME_get0_der(name, ctypes.byref(data), ctypes.byref(length))
    return ctypes.string_at(data.value or 0, length.value)


def _extension(pointer: int, kind: int) -> bytes | None:
    library = openssl()
    index = library.X509_CRL_get_ext_by_NID(pointer, kind, -1)
    if index < 0:
        return None
    content = library.X509_EXTENSION_get_data(library.X509_CRL_get_ext(pointer, index))
    return ctypes.string_at(library.ASN1_STRING_get0_data(content), library.ASN1_STRING_length(content))


def _number(der: bytes | None) -> int:
    if der is None:
        return 0
    tag, length, content = der[:1], der[1:2], der[2:]
    if tag != bytes([_INTEGER]) or length != bytes([len(content) & 0xFF]):  # 20 bytes at most: RFC 5280, 5.2.3
        raise _damaged()
    return int.from_bytes(content, "big", signed=True)


def _damaged() -> PemError:
    return PemError("it holds no list of revoked certificates, or a damaged one", hint=_HINT)
