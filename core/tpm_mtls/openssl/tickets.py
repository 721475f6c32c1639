"""Session tickets that a server gives, on the ``SSL_CTX`` behind its context."""

from __future__ import annotations

import ctypes
import os

from tpm_mtls.openssl.library import openssl
from tpm_mtls.openssl.stores import mark_of

_SET_SESS_CACHE_MODE = 44  # SSL_CTRL_SET_SESS_CACHE_MODE, behind SSL_CTX_set_session_cache_mode
_SET_TICKET_KEYS = 59  # SSL_CTRL_SET_TLSEXT_TICKET_KEYS, behind SSL_CTX_set_tlsext_ticket_keys
_SESS_CACHE_OFF = 0
_KEYS_SIZE = 80  # bytes: the name, an HMAC key and an AES key
_DAY = 86400  # seconds
_SUCCESS, _SUCCESS_RENEW = 5, 6  # SSL_TICKET_...
_IGNORE_RENEW, _USE, _USE_RENEW = 2, 3, 4  # SSL_TICKET_RETURN_...


def set_up(ssl_ctx: int) -> None:
    """Lets a ticket's life end with the client's certificate, and is the server's only way to resume.

    OpenSSL looks at the client's certificate, and whether it was revoked, in a full handshake only. So a ticket is also
    bound to the revocation lists by which its connection verified: one that looks at others makes a full handshake.
    The other way, a table of TLS 1.2 sessions in the server, would not end with the certificate, and cost memory.
    """
    library = openssl()
    library.SSL_CTX_ctrl(ssl_ctx, _SET_SESS_CACHE_MODE, _SESS_CACHE_OFF, None)
    library.SSL_CTX_set_session_ticket_cb(ssl_ctx, _make, _read, None)


def renew_keys(ssl_ctx: int) -> None:
    """Makes new keys for tickets: those given before are of no use any more, and mean a full handshake."""
    openssl().SSL_CTX_ctrl(ssl_ctx, _SET_TICKET_KEYS, _KEYS_SIZE, os.urandom(_KEYS_SIZE))


def _ticket_is_made(connection: int, _argument: int) -> int:
    library = openssl()
    session = library.SSL_get_session(connection)
    certificate = library.SSL_SESSION_get0_peer(session)
    if certificate:
        days, seconds = ctypes.c_int(), ctypes.c_int()
        end = library.X509_get0_notAfter(certificate)
        library.ASN1_TIME_diff(ctypes.byref(days), ctypes.byref(seconds), None, end)
        left = max(0, days.value * _DAY + seconds.value)
        if left < library.SSL_SESSION_get_timeout(session):
            library.SSL_SESSION_set_timeout(session, left)
    mark = mark_of(connection)
    return int(library.SSL_SESSION_set1_ticket_appdata(session, mark, len(mark)))


def _ticket_is_read(
    connection: int, session: int | None, _name: int, _name_length: int, status: int, _argument: int
) -> int:
    if status not in {_SUCCESS, _SUCCESS_RENEW}:
        return _IGNORE_RENEW
    data, length = ctypes.c_void_p(), ctypes.c_size_t()
    openssl().SSL_SESSION_get0_ticket_appdata(session, ctypes.byref(data), ctypes.byref(length))
    mark = ctypes.string_at(data, length.value) if data.value else b""
    if mark != mark_of(connection):
        return _IGNORE_RENEW
    return _USE if status == _SUCCESS else _USE_RENEW


_P = ctypes.c_void_p
_make = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P)(_ticket_is_made)
_read = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P, _P, ctypes.c_size_t, ctypes.c_int, _P)(_ticket_is_read)
