"""A small HTTPS server whose every byte a test decides, for the faults that no real server commits on request."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    import ssl

_TIMEOUT = 20.0  # seconds; only a broken test waits so long


@dataclass(frozen=True)
class Request:
    """What the server got: the head's first line, the header fields with lower-case names, the body; and from whom."""

    line: str
    headers: dict[str, str]
    body: bytes
    device: str | None
    port: int


Answer: TypeAlias = Callable[[socket.socket, Request], None]


def http(status: int, body: bytes = b"", *, content_type: str = "text/plain", extra: str = "") -> bytes:
    """A proper answer that keeps the connection."""
    head = f"HTTP/1.1 {status} Words\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def whoami(connection: socket.socket, request: Request) -> None:
    """Answers with the common name of the client's certificate and what was asked."""
    seen = {"device": request.device, "request": request.line, "body": request.body.decode(), "port": request.port}
    connection.sendall(http(200, json.dumps(seen).encode(), content_type="application/json"))


def fixed(data: bytes, *, then_close: bool = False) -> Answer:
    """Always answers with ``data``."""

    def answer(connection: socket.socket, _: Request) -> None:
        connection.sendall(data)
        if then_close:
            raise ConnectionAbortedError

    return answer


class HttpsServer:
    """Listens on a free port of the loopback address as long as the block lasts; ``requests`` is what it got.

    Without a context it speaks no TLS: it answers the first bytes, whatever they are. A ``silent`` server accepts
    connections and says nothing, a ``deaf`` one does so after the handshake. ``connections`` counts those of TCP,
    ``handshakes`` those that finished TLS, and ``failures`` says why others ended.
    """

    def __init__(
        self, context: ssl.SSLContext | None, answer: Answer = whoami, *, silent: bool = False, deaf: bool = False
    ) -> None:
        self.requests: list[Request] = []
        self.failures: list[str] = []
        self.connections = 0
        self.handshakes = 0
        self._context = context
        self._answer = answer
        self._silent = silent
        self._deaf = deaf
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def url(self, path: str = "/", *, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.drop_connections()
        for thread in self._threads:
            thread.join(_TIMEOUT)
            assert not thread.is_alive()
        self._listener.close()

    def drop_connections(self) -> None:
        """Cuts all connections, the kept ones too.

        Those of TCP alone: ``SSLSocket.shutdown`` takes TLS away from under the thread that speaks it.
        """
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(_TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._serve, connection, address[1])

    def _serve(self, connection: socket.socket, port: int) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._forget, connection)
            with self._lock:
                self._open.add(connection)
            try:
                if self._silent:
                    self._ending.wait(_TIMEOUT)
                elif self._context is None:
                    self._answer(connection, Request(connection.recv(4096).hex(), {}, b"", None, port))
                else:
                    self._converse(self._start_tls(connection, self._context, stack), port)
            except OSError as error:  # TLS errors too
                self.failures.append(str(error))

    def _start_tls(
        self, connection: socket.socket, context: ssl.SSLContext, stack: contextlib.ExitStack
    ) -> socket.socket:
        with self._lock:
            self._open.discard(connection)
            tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._open.add(tls)
        stack.callback(self._forget, tls)
        tls.do_handshake()
        self.handshakes += 1
        return tls

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _converse(self, connection: socket.socket, port: int) -> None:
        if self._deaf:
            self._ending.wait(_TIMEOUT)
            return
        with connection.makefile("rb") as lines:
            while line := lines.readline().decode().strip():
                headers: dict[str, str] = {}
                while header := lines.readline().decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = lines.read(int(headers.get("content-length", "0")))
                request = Request(line, headers, body, _common_name(connection), port)
                self.requests.append(request)
                self._answer(connection, request)


def _common_name(connection: socket.socket) -> str | None:
    certificate = getattr(connection, "getpeercert", dict)() or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if names else None


MakeServer: TypeAlias = Callable[..., HttpsServer]
"""What the fixture ``serve`` of the client's tests is."""
