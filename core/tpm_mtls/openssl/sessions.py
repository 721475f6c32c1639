"""Sessions of TLS connections, on the ``SSL`` behind an `ssl.SSLSocket` or `ssl.SSLObject`.

Python's own `ssl.SSLSession` is not used: it refers to its `ssl.SSLContext`, so that a context that keeps some would
never be freed by counting references, and its key stay in the TPM. It is also a copy, which takes 0.1 ms.
"""

from __future__ import annotations

import _ssl
import ctypes
import sys

from tpm_mtls.openssl.library import openssl

_PythonsConnection: type = _ssl._SSLSocket  # type: ignore[attr-defined]  # noqa: SLF001 - it is not public
_TLS_1_3 = 0x0304


def address(connection: object, context: int) -> int | None:
    """The ``SSL *`` of Python's ``_ssl._SSLSocket``, valid while that lives; none where it cannot be found.

    Its first fields are the socket, the ``SSL *`` and the context, whose `id` is ``context`` (PySSLSocket in CPython's
    Modules/_ssl.c, 3.11 to 3.14): the one being where it is expected says that the other is too.
    """
    if sys.implementation.name != "cpython" or not isinstance(connection, _PythonsConnection):
        return None
    fields = (ctypes.c_void_p * 3).from_address(id(connection) + object.__basicsize__)
    return fields[1] if fields[2] == context else None


class Session:
    """A copy of an ``SSL_SESSION``: a connection that ends without a farewell would spoil its own."""

    def __init__(self, pointer: int) -> None:
        self._library = openssl()
        self._copy: int = self._library.SSL_SESSION_dup(pointer)
        self.id = _id(pointer)

    def __del__(self) -> None:
        self._library.SSL_SESSION_free(self._copy)

    @property
    def is_tls_1_3(self) -> bool:
        """Whether it is of TLS 1.3, whose tickets are for one use (RFC 8446, appendix C.4)."""
        version: int = self._library.SSL_SESSION_get_protocol_version(self._copy)
        return version >= _TLS_1_3

    @property
    def ends(self) -> int:
        """When its life ends, in seconds since 1970: by our own limit or by the server's, which is only a hint and may
        be missing in TLS 1.2 (RFC 8446, 4.6.1; RFC 5077, 3.3).
        """  # noqa: D205 - one sentence
        begin: int = self._library.SSL_SESSION_get_time(self._copy)
        seconds: int = self._library.SSL_SESSION_get_timeout(self._copy)
        hint: int = self._library.SSL_SESSION_get_ticket_lifetime_hint(self._copy)
        return begin + (min(seconds, hint) if hint or self.is_tls_1_3 else seconds)

    def offer(self, connection: int) -> None:
        """Lets the handshake that is about to begin offer it to the server."""
        theirs = self._library.SSL_SESSION_dup(self._copy)
        self._library.SSL_set_session(connection, theirs)
        self._library.SSL_SESSION_free(theirs)


def is_offering(connection: int) -> bool:
    """Before a handshake: whether it offers a session."""
    return bool(openssl().SSL_get_session(connection))


def is_resumed(connection: int) -> bool:
    """After a handshake: whether the server took the session that it offered."""
    return bool(openssl().SSL_session_reused(connection))


def resumable(connection: int, *, besides: Session | None) -> Session | None:
    """The session with which a later connection can resume; none if there is none yet, or only ``besides``."""
    library = openssl()
    found = library.SSL_get_session(connection)
    if not found or not library.SSL_SESSION_is_resumable(found) or (besides and besides.id == _id(found)):
        return None
    return Session(found)


def _id(pointer: int) -> bytes:
    """The session's identifier; of a ticket, the hash over it."""
    length = ctypes.c_uint()
    found = openssl().SSL_SESSION_get_id(pointer, ctypes.byref(length))
    return bytes(found[: length.value])
