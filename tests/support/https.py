"""A plain HTTPS client of the standard library, for talking to the backend as a device with a software key."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpm_mtls.identity import Identity

TIMEOUT = 20


def device_context(identity: Identity | None, *, trust: Identity | None = None) -> ssl.SSLContext:
    """A client-side context with the software key of ``identity`` (none: without a certificate).

    ``trust`` says whose trust file verifies the server, if not that of ``identity``.
    """
    whose = trust or identity
    context = ssl.create_default_context(cafile=str(whose.trust) if whose else None)
    if identity is not None:
        context.load_cert_chain(identity.certificate, str(identity.key))
    return context


def tls_socket(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS connection to the backend, after its handshake."""
    tcp = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
    try:
        return context.wrap_socket(tcp, server_hostname="localhost")
    except BaseException:
        tcp.close()
        raise


@dataclass(frozen=True)
class Answer:
    """An answer: status, header fields, JSON body."""

    status: int
    headers: http.client.HTTPMessage
    body: Any


class HttpsClient:
    """One kept connection."""

    def __init__(self, port: int, identity: Identity, *, context: ssl.SSLContext | None = None) -> None:
        self._connection = http.client.HTTPSConnection(
            "localhost", port, timeout=TIMEOUT, context=context or device_context(identity)
        )
        self._connection.connect()
        # a second request must not silently go over a second connection
        self._connection.auto_open = 0

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Sends one request and reads its JSON answer."""
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        return Answer(response.status, response.headers, json.loads(response.read()))

    def get(self, path: str) -> Answer:
        """GET."""
        return self.request("GET", path)

    def get_text(self, path: str) -> tuple[int, str | None, str]:
        """GET of what is no JSON: status, Content-Type and text."""
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()

    def post(self, path: str, body: bytes, **headers: str) -> Answer:
        """POST of JSON, unless the header fields say otherwise."""
        fields = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.request("POST", path, body, fields)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()
