"""Stops a handshake right before it needs the own key, so that it can go on in another thread.

OpenSSL asks a context for its certificate at that moment and at no other: not in a resumed handshake, not while it
waits for the peer (SSL_CTX_set_cert_cb(3)). An answer below zero stops the handshake, which goes on when it is called
again.
"""

from __future__ import annotations

import contextlib
import ctypes
import ssl
import threading
from typing import TYPE_CHECKING

from tpm_mtls.openssl.library import openssl

if TYPE_CHECKING:
    from collections.abc import Iterator

_STOP, _GO_ON = -1, 1


class _Thread(threading.local):
    stops = False


_thread = _Thread()


def _certificate_wanted(_connection: int, _argument: int) -> int:
    return _STOP if _thread.stops else _GO_ON


_callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_certificate_wanted)


def make_stoppable(ssl_ctx: int) -> None:
    """Lets `stopping` stop the handshakes of connections that are made from now on."""
    openssl().SSL_CTX_set_cert_cb(ssl_ctx, _callback, None)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """A handshake that this thread does inside the block ends with an error that `is_stop` knows."""
    _thread.stops = True
    try:
        yield
    finally:
        _thread.stops = False


def is_stop(error: ssl.SSLError) -> bool:
    """Whether a handshake was stopped, and nothing is wrong."""
    return error.errno == ssl.SSL_ERROR_WANT_X509_LOOKUP
