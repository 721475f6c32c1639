"""Opening a TLS connection, in three steps: the name, TCP, TLS. Every failure becomes an error that names the step."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tpm_mtls.errors import PeerUnreachableError, TpmMtlsError, UsageError
from tpm_mtls.proxies import unused_proxy
from tpm_mtls_client.tls_errors import tls_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpm_mtls_client.timing import Budget

Address: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]

_REASONS = {
    errno.ECONNREFUSED: "the connection was refused: nothing listens there",
    errno.EHOSTUNREACH: "there is no route to that host",
    errno.ENETUNREACH: "there is no route to that network",
    errno.ECONNRESET: "the connection was reset",
    errno.EPIPE: "the connection was closed",
}


@dataclass(frozen=True)
class Peer:
    """Host (a name, or an address without brackets) and TCP port; ``str()`` is as in a URL."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """The name that its certificate must have: without an IPv6 address's zone or a DNS name's last dot."""
        return self.host.partition("%")[0].rstrip(".")


def resolve(peer: Peer) -> Sequence[Address]:
    """The addresses of ``peer``, in the system's order of preference; the system's resolver sets its own time limit.

    Raises:
        PeerUnreachableError: it has none.
        UsageError: it is no host name.
    """
    try:
        found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise PeerUnreachableError(
            f"the name {peer.host} does not resolve: {(error.strerror or 'unknown').lower()}",
            hint=f"is it spelled right, and does this machine have a name server?{unused_proxy(peer.host)}",
            host=str(peer),
        ) from error
    except UnicodeError as error:
        raise UsageError(f"not a host name: {peer.host[:80]!r}", hint="give it as in https://host:8443/") from error
    return [(family, address) for family, _, _, _, address in found]


def connect_tcp(peer: Peer, addresses: Sequence[Address], limit: Budget) -> socket.socket:
    """A TCP connection to the first of ``addresses`` that answers.

    Raises:
        PeerUnreachableError: none answers, or not in time; the reason is that of the last one.
    """
    failure = OSError("it has no address")
    for position, (family, address) in enumerate(addresses):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            # an address that swallows packets must leave time for the others
            connection.settimeout(limit.left() / (len(addresses) - position))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise unreachable(failure, peer, "accept a connection") from failure


def start_tls(context: ssl.SSLContext, connection: socket.socket, peer: Peer, limit: Budget) -> ssl.SSLSocket:
    """TLS on ``connection``, which is closed when the handshake fails.

    The context checks the chain and that the certificate is for ``peer``.

    Raises:
        PeerUnreachableError: the peer stays silent or cuts the connection.
        PeerUntrustedError, HandshakeError: TLS failed.
        KeyGoneError: the TPM restarted and lost the key, which `IdentityContext` has loaded again by now.
        TpmMtlsError: the own key does not sign for another reason.
    """
    try:
        tls = context.wrap_socket(connection, server_hostname=peer.name, do_handshake_on_connect=False)
        with contextlib.ExitStack() as stack:
            stack.callback(tls.close)
            tls.settimeout(limit.left())
            tls.do_handshake()
            stack.pop_all()
    except ssl.SSLError as error:
        raise handshake_error(error, peer) from error
    except OSError as error:
        raise unreachable(error, peer, "finish the TLS handshake") from error
    return tls


def unreachable(error: OSError, peer: Peer, doing: str) -> PeerUnreachableError:
    """The error for ``error`` of the socket, which happened while ``doing``."""
    proxy = unused_proxy(peer.host)
    if isinstance(error, TimeoutError):
        hint = f"is it the right port? a slow one needs --timeout{proxy}"
        return PeerUnreachableError(f"{peer} did not {doing} in time", hint=hint, host=str(peer))
    text = _REASONS.get(error.errno or 0, (error.strerror or str(error)).lower())
    hint = f"is it running, and is that its address and port?{proxy}"
    return PeerUnreachableError(f"cannot reach {peer}: {text}", hint=hint, host=str(peer))


def handshake_error(error: ssl.SSLError, peer: Peer) -> TpmMtlsError:
    """Why the handshake failed: the own key's trouble if `IdentityContext` found some, else what TLS says."""
    return error.__cause__ if isinstance(error.__cause__, TpmMtlsError) else tls_error(error, str(peer))


def dial(context: ssl.SSLContext, peer: Peer, limit: Budget) -> ssl.SSLSocket:
    """A verified TLS connection to ``peer``: `resolve`, `connect_tcp`, `start_tls`, with their errors."""
    return start_tls(context, connect_tcp(peer, resolve(peer), limit), peer, limit)
