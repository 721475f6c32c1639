"""The trust anchors and revocation lists by which connections verify their peer: an ``X509_STORE``.

A connection keeps the store that its ``SSL_CTX`` had when it was made, so that another one can be installed while
handshakes go on. The ``SSL_CTX``'s own store cannot be exchanged then: handshakes use it without a reference.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

from tpm_mtls.openssl.library import openssl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SET_VERIFY_STORE = 106  # SSL_CTRL_SET_VERIFY_CERT_STORE, behind SSL_CTX_set1_verify_cert_store
_GET_VERIFY_STORE = 137  # SSL_CTRL_GET_VERIFY_CERT_STORE, behind SSL_get0_verify_cert_store
_CRL_CHECK, _CRL_CHECK_ALL = 0x4, 0x8  # X509_V_FLAG_...
_OK, _UNABLE_TO_GET_CRL = 0, 3  # X509_V_OK, X509_V_ERR_UNABLE_TO_GET_CRL
_MARK = 0  # the place for the application's data, see X509_STORE_get_ex_data(3)

MARK_SIZE = ctypes.sizeof(ctypes.c_void_p)
"""Bytes of a store's mark."""


class Store:
    """A store that looks each certificate of a chain up in the list of its issuer, and refuses it without one.

    Not so the trust anchor where it is no root: no list of what is above it could be verified.
    """

    def __init__(self, anchors: Iterable[int], crls: Iterable[int], mark: bytes) -> None:
        """Makes it.

        Args:
            anchors: ``X509 *``, of which the store keeps references.
            crls: ``X509_CRL *``, the same.
            mark: `MARK_SIZE` bytes that tell it from stores with other lists; not all zero.
        """
        self._library = openssl()
        self._store: int = self._library.X509_STORE_new()
        for anchor in anchors:
            self._library.X509_STORE_add_cert(self._store, anchor)
        for crl in crls:
            self._library.X509_STORE_add_crl(self._store, crl)
        # beside the connection's flags, which are the first context's when a server-name callback chooses another one
        self._library.X509_STORE_set_flags(self._store, _CRL_CHECK | _CRL_CHECK_ALL)
        self._library.X509_STORE_set_verify_cb(self._store, _callback)
        self._library.X509_STORE_set_ex_data(self._store, _MARK, int.from_bytes(mark, "big"))

    def __del__(self) -> None:
        self._library.X509_STORE_free(self._store)

    def install(self, ssl_ctx: int) -> None:
        """Lets the connections that are made from now on verify by it. None may be made meanwhile."""
        self._library.SSL_CTX_ctrl(ssl_ctx, _SET_VERIFY_STORE, 1, self._store)


def mark_of(connection: int) -> bytes:
    """The mark of the `Store` by which an ``SSL *`` verifies; zeros if it looks at no list."""
    library = openssl()
    store = ctypes.c_void_p()
    library.SSL_ctrl(connection, _GET_VERIFY_STORE, 0, ctypes.byref(store))
    mark = library.X509_STORE_get_ex_data(store, _MARK) if store.value else None
    return (mark or 0).to_bytes(MARK_SIZE, "big")


@contextlib.contextmanager
def trust_anchors(ssl_ctx: int) -> Iterator[list[int]]:
    """What the ``SSL_CTX`` trusts: ``X509 *``, freed after the block."""
    library = openssl()
    stack = library.X509_STORE_get1_all_certs(library.SSL_CTX_get_cert_store(ssl_ctx))
    anchors: list[int] = [library.OPENSSL_sk_value(stack, index) for index in range(library.OPENSSL_sk_num(stack))]
    try:
        yield anchors
    finally:
        for anchor in anchors:
            library.X509_free(anchor)
        library.OPENSSL_sk_free(stack)


def _verified(ok: int, context: int) -> int:
    library = openssl()
    if ok or library.X509_STORE_CTX_get_error(context) != _UNABLE_TO_GET_CRL:
        return ok
    last = library.OPENSSL_sk_num(library.X509_STORE_CTX_get0_chain(context)) - 1
    if not 0 < library.X509_STORE_CTX_get_error_depth(context) == last:
        return 0
    library.X509_STORE_CTX_set_error(context, _OK)
    return 1


_callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(_verified)
