"""What urllib3 reports when a request fails, as errors with a cause and an advice.

What happens before the request is sent never gets here: `tpm_mtls_client.dial` explains it. What remains is sending,
waiting, the answer's form, and the alerts of TLS 1.3 that come instead of an answer.
"""

from __future__ import annotations

import http.client
import re
import ssl
from typing import TYPE_CHECKING

from urllib3 import exceptions

from tpm_mtls.errors import HandshakeError, PeerError, PeerUnreachableError, ResponseError, TpmMtlsError, UsageError
from tpm_mtls_client.tls_errors import tls_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_client.timing import Budget


def request_error(error: Exception, peer: str, budget: Budget) -> TpmMtlsError:
    """What ``error`` means, for a person.

    Args:
        error: one of urllib3's, http.client's, ssl's, or an ``OSError``.
        peer: host and port.
        budget: the request's, which tells a slow peer from a silent one.
    """
    cause = _cause(error)
    if isinstance(cause, TimeoutError | exceptions.TimeoutError):
        return _late(peer, budget)
    if isinstance(cause, ssl.SSLError):
        return tls_error(cause, peer)
    kind = next((_KINDS[cls] for cls in type(cause).__mro__ if cls in _KINDS), _other)
    return kind(cause, peer)


def _cause(error: Exception) -> Exception:
    """The error inside urllib3's wrappers: the last argument, or the reason for giving up."""
    inner = error.reason if isinstance(error, exceptions.MaxRetryError) else None
    if isinstance(error, exceptions.SSLError | exceptions.ProtocolError | exceptions.ProxyError) and error.args:
        inner = error.args[-1]
    return _cause(inner) if isinstance(inner, Exception) else error


def _late(peer: str, budget: Budget) -> PeerUnreachableError:
    if budget.is_spent():
        message = f"the request to {peer} was not done within {budget.timeout.total:g} s"
    else:
        message = f"{peer} stayed silent for {budget.timeout.read:g} s"
    return PeerUnreachableError(message, hint="try again later, or allow more time: --timeout", host=peer)


def _closed(_: Exception, peer: str) -> PeerError:
    return HandshakeError(
        f"{peer} closed the connection without an answer",
        hint="it may have refused our certificate without saying so, or be restarting; its log says more",
        host=peer,
    )


def _cut_off(_: Exception, peer: str) -> PeerError:
    return ResponseError(f"the answer of {peer} is cut off", hint="try again; its log may say why", host=peer)


def _malformed(error: Exception, peer: str) -> PeerError:
    return ResponseError(
        f"the answer of {peer} is not proper HTTP: {_short(error)}",
        hint="is it an HTTPS server, and is there nothing in between?",
        host=peer,
    )


def _tls(error: Exception, peer: str) -> PeerError:
    return HandshakeError(f"TLS with {peer} failed: {_short(error)}", hint="the peer's log may say why", host=peer)


def _unreachable(error: Exception, peer: str) -> PeerError:
    return PeerUnreachableError(
        f"cannot reach {peer}: {_short(error)}", hint="is it running, and is that its address and port?", host=peer
    )


def _usage(error: Exception, _: str) -> TpmMtlsError:
    return UsageError(f"that request is not possible: {_short(error)}", hint="a URL looks like https://host:8443/path")


def _client_closed(_: Exception, peer: str) -> TpmMtlsError:
    return UsageError(f"the client was closed before the request to {peer}", hint="close it after the last one")


def _other(error: Exception, peer: str) -> PeerError:
    return PeerError(f"the request to {peer} failed: {_short(error)}", hint="the peer's log may say why", host=peer)


def _short(error: Exception) -> str:
    """The system's text, or the name of the class in words; what the peer sent does not get into the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if type(error) is http.client.HTTPException:
        return "too many header fields"  # its only use without a class of its own
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()


# http.client's and urllib3's classes; for one that is not here, its nearest parent decides
_KINDS: dict[type[BaseException], Callable[[Exception, str], TpmMtlsError]] = {
    OSError: _unreachable,
    ConnectionResetError: _closed,
    BrokenPipeError: _closed,
    http.client.RemoteDisconnected: _closed,
    http.client.IncompleteRead: _cut_off,
    http.client.HTTPException: _malformed,
    exceptions.HTTPError: _other,
    exceptions.PoolError: _other,
    exceptions.SSLError: _tls,
    exceptions.ClosedPoolError: _client_closed,
    exceptions.RequestError: _other,
    exceptions.NewConnectionError: _unreachable,
    exceptions.LocationValueError: _usage,
    exceptions.HostChangedError: _usage,
    exceptions.UnrewindableBodyError: _usage,
    exceptions.ProxyError: _unreachable,
    exceptions.ProxySchemeUnsupported: _usage,
    exceptions.ProtocolError: _malformed,
    exceptions.DecodeError: _malformed,
    exceptions.ResponseError: _malformed,
    exceptions.BodyNotHttplibCompatible: _malformed,
    exceptions.IncompleteRead: _cut_off,
    exceptions.InvalidChunkLength: _malformed,
    exceptions.InvalidHeader: _malformed,
    exceptions.HeaderParsingError: _malformed,
}
