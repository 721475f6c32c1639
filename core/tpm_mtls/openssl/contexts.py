"""What `ssl.SSLContext` does not offer, on the ``SSL_CTX`` behind it."""

from __future__ import annotations

import contextlib
import ctypes
import ssl
import sys
from typing import TYPE_CHECKING

from tpm_mtls.errors import OpensslError, OpensslLinkageError
from tpm_mtls.openssl.library import openssl, take_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_EVP_PKEY_EC = 408  # NID_X9_62_id_ecPublicKey
_SET_GROUPS_LIST = 92  # SSL_CTRL_SET_GROUPS_LIST, behind SSL_CTX_set1_groups_list


def address(context: ssl.SSLContext) -> int:
    """The ``SSL_CTX *``: the first field after the object header (PySSLContext in CPython's Modules/_ssl.c).

    Raises:
        OpensslLinkageError: another Python, or what lies there does not agree with what Python says of the context.
    """
    if sys.implementation.name == "cpython":
        found = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
        library = openssl()
        if (
            found
            and library.SSL_CTX_get_options(found) & 0xFFFFFFFF == context.options & 0xFFFFFFFF
            and library.SSL_CTX_get_verify_mode(found) & 3 == _verify_bits(context)
        ):
            return found
    raise OpensslLinkageError(
        "this Python's ssl.SSLContext is built differently from what is known",
        hint="TPM keys need CPython 3.11 or newer with its own ssl module",
    )


def _verify_bits(context: ssl.SSLContext) -> int:
    # SSL_VERIFY_NONE 0, SSL_VERIFY_PEER 1, SSL_VERIFY_FAIL_IF_NO_PEER_CERT 2
    return {ssl.CERT_NONE: 0, ssl.CERT_OPTIONAL: 1, ssl.CERT_REQUIRED: 3}[context.verify_mode]


def set_groups(context: ssl.SSLContext, groups: str) -> None:
    """Sets the key-exchange groups, best first, such as ``X25519:P-256:P-384``."""
    if openssl().SSL_CTX_ctrl(address(context), _SET_GROUPS_LIST, 0, groups.encode()) != 1:
        raise OpensslError(
            f"OpenSSL does not accept the groups {groups}: {'; '.join(map(str, take_errors()))}",
            hint="is it restricted by a system-wide policy?",
        )


def use(ssl_ctx: int, leaf: int, issuers: int, pkey: int) -> bool:
    """Installs certificate, chain and key at once, replacing the present ones; false when they do not match.

    Nothing changes unless all of it is accepted. No other thread may make a connection from the context meanwhile.

    Raises:
        OpensslError: OpenSSL refuses the key or the certificate (too weak for its security level).
    """
    library = openssl()
    library.ERR_clear_error()
    if library.SSL_CTX_use_cert_and_key(ssl_ctx, leaf, pkey, issuers, 1) == 1:
        return True
    errors = take_errors()
    if library.EVP_PKEY_eq(library.X509_get0_pubkey(leaf), pkey) != 1:
        library.ERR_clear_error()
        return False
    raise OpensslError(
        f"OpenSSL refuses the certificate or its key: {'; '.join(map(str, errors))}",
        hint="is it too weak for OpenSSL's security level? use ecc-p256",
    )


def key_pair(ssl_ctx: int) -> tuple[int, int]:
    """The installed certificate's public key and the private key, valid while nothing else is installed."""
    library = openssl()
    public: int = library.X509_get0_pubkey(library.SSL_CTX_get0_certificate(ssl_ctx))
    private: int = library.SSL_CTX_get0_privatekey(ssl_ctx)
    return public, private


def key_type(ssl_ctx: int) -> str:
    """The type of the installed key; see `tpm_mtls.openssl.keys.key_type`."""
    name: bytes = openssl().EVP_PKEY_get0_type_name(openssl().SSL_CTX_get0_privatekey(ssl_ctx))
    return name.decode()


def abandon_key(ssl_ctx: int) -> None:
    """Makes sure that this process never frees the installed key, and so never flushes it from the TPM."""
    openssl().EVP_PKEY_up_ref(openssl().SSL_CTX_get0_privatekey(ssl_ctx))


@contextlib.contextmanager
def holding_key(ssl_ctx: int, *, abandon: bool) -> Iterator[None]:
    """Puts off freeing the installed key, which flushes it from the TPM, until the end of the block, or for ever."""
    library = openssl()
    held = library.SSL_CTX_get0_privatekey(ssl_ctx)
    if held:
        library.EVP_PKEY_up_ref(held)
    try:
        yield
    finally:
        if not abandon:
            library.EVP_PKEY_free(held)


def empty_key(ssl_ctx: int) -> None:
    """Takes the installed key out of its shell, which flushes it from the TPM even if connections refer to it.

    Nothing may be signing with it meanwhile, and nothing can sign with it afterwards.
    """
    library = openssl()
    library.EVP_PKEY_set_type(library.SSL_CTX_get0_privatekey(ssl_ctx), _EVP_PKEY_EC)
    library.ERR_clear_error()


def forget_errors() -> None:
    """Empties this thread's error queue: an entry that the provider left would make the next read fail."""
    openssl().ERR_clear_error()
