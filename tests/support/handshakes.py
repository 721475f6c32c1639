"""TLS handshakes between two contexts over a socket pair, with one exchanged line so that TLS 1.3 refusals show."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tpm_mtls.tls import IdentityContext

if TYPE_CHECKING:
    import ssl

_TIMEOUT = 20.0  # seconds; only a broken test waits so long


@dataclass(frozen=True)
class Seen:
    """What the two sides of a completed handshake say.

    Attributes:
        version: ``TLSv1.3`` or ``TLSv1.2``.
        cipher: OpenSSL's name of the cipher suite.
        client: common name in the client's certificate, as the server saw it.
        server: common name in the server's certificate, as the client saw it.
        resumed: whether it resumed an earlier session.
    """

    version: str | None
    cipher: str | None
    client: str | None
    server: str | None
    resumed: bool


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, *, name: str = "localhost", resume: bool = False) -> Seen:
    """A completed handshake.

    Args:
        client: the client's context.
        server: the server's.
        name: the server's.
        resume: whether the client may resume an earlier session; a full handshake otherwise.

    Raises:
        Exception: the client's, or the server's if the client had none.
    """
    seen, client_error, server_error = attempt(client, server, name=name, resume=resume)
    error = client_error or server_error
    if error is not None:
        try:
            raise error
        finally:
            del error, client_error, server_error  # or the contexts live on, in a cycle through the traceback
    assert seen is not None
    return seen


def attempt(
    client: ssl.SSLContext, server: ssl.SSLContext, *, name: str = "localhost", resume: bool = False
) -> tuple[Seen | None, Exception | None, Exception | None]:
    """What was seen, or the client's and the server's errors."""
    if not resume and isinstance(client, IdentityContext):
        client.sessions.clear()
    client_end, server_end = socket.socketpair()
    errors: list[Exception] = []
    names: list[str | None] = []

    def serve() -> None:
        server_end.settimeout(_TIMEOUT)
        try:
            with server.wrap_socket(server_end, server_side=True) as tls:
                names.append(common_name(tls))
                tls.sendall(b"welcome\n")
                with contextlib.suppress(OSError):  # the client closes, and OpenSSL 3.5 answers that
                    tls.recv(1)
        except Exception as error:  # noqa: BLE001 - handed to the test
            errors.append(error.with_traceback(None))
        finally:
            server_end.close()

    thread = threading.Thread(target=serve)
    thread.start()
    seen, failure = None, None
    client_end.settimeout(_TIMEOUT)
    try:
        with client.wrap_socket(client_end, server_hostname=name) as tls:
            assert tls.recv(16) == b"welcome\n"
            cipher = tls.cipher()
            seen = Seen(tls.version(), cipher and cipher[0], None, common_name(tls), bool(tls.session_reused))
    except Exception as error:  # noqa: BLE001 - handed to the test
        failure = error.with_traceback(None)
    finally:
        client_end.close()
        thread.join()
    if seen and names:
        seen = replace(seen, client=names[0])
    return seen, failure, errors[0] if errors else None


def common_name(tls: ssl.SSLSocket) -> str | None:
    """The common name of the peer's certificate; none without a certificate."""
    certificate = tls.getpeercert() or {}
    for attributes in certificate.get("subject", ()):
        with contextlib.suppress(KeyError, ValueError, TypeError):
            return str(dict(attributes)["commonName"])  # type: ignore[arg-type]  # typeshed knows no shape
    return None
