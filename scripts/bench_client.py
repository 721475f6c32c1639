"""What the bench starts as our client: HTTPS requests over the project's context, in as many threads as told.

python scripts/bench_client.py --port P --trust F --certificate F --key KEY [--tcti T] [--version TLSv1_2] [--mode M]

It says ``ready`` when its context is made. For each line ``COUNT THREADS`` on stdin it answers with one line: the
microseconds that all of it took, then those of each request. ``bench_handshake.c`` is the same in C.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TIMEOUT = 60.0  # seconds
_ONE = b"GET / HTTP/1.0\r\n\r\n"
_MORE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client:
    """Makes requests to https://localhost:``port``/ with ``context``."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self._context = context
        self._port = port
        self._kept: ssl.SSLSocket | None = None

    def full(self) -> None:
        """A request on a new connection with a full handshake."""
        self._new(reused=b".")

    def resumed(self) -> None:
        """A request on a new connection that resumes a session."""
        self._new(reused=b"r")

    def any(self) -> None:
        """A request on a new connection, resumed or not."""
        self._new(reused=None)

    def kept(self) -> None:
        """A request on the connection of the last one."""
        if self._kept is None:
            self._kept = self._connect()
        self._kept.sendall(_MORE)
        answer = b""
        while b"\r\n\r\n" not in answer or not _is_complete(answer):
            answer += _received(self._kept)
        _check(answer, reused=None)

    def close(self) -> None:
        """Ends the kept connection."""
        if self._kept is not None:
            self._kept.close()

    def _new(self, *, reused: bytes | None) -> None:
        with self._connect() as connection:
            connection.sendall(_ONE)
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
        _check(answer, reused=reused)

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT)
        return self._context.wrap_socket(plain, server_hostname="localhost")


def _received(connection: ssl.SSLSocket) -> bytes:
    piece = connection.recv(4096)
    if not piece:
        raise RuntimeError("the server closed the connection")
    return piece


def _is_complete(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(length.split(b":")[1])


def _check(answer: bytes, *, reused: bytes | None) -> None:
    verdict, _, _, _, was_reused, _ = answer.partition(b"\r\n\r\n")[2].split(b"|")
    if verdict != b"SUCCESS":
        raise RuntimeError(f"the server saw no valid client certificate: {verdict!r}")
    if reused is not None and was_reused != reused:
        raise RuntimeError(f"session_reused is {was_reused!r} and should be {reused!r}")


def timed(request: Callable[[], None], count: int, threads: int) -> tuple[float, list[float]]:
    """How long ``count`` requests in ``threads`` threads took in all, and each; microseconds."""
    each: list[float] = []
    errors: list[Exception] = []

    def work(mine: int) -> None:
        try:
            for _ in range(mine):
                begun = time.perf_counter()
                request()
                each.append((time.perf_counter() - begun) * 1e6)
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            errors.append(error)

    shares = [count // threads + (number < count % threads) for number in range(threads)]
    begun = time.perf_counter()
    if threads == 1:
        work(count)
    else:
        with _started(threading.Thread(target=work, args=(share,)) for share in shares):
            pass
    total = (time.perf_counter() - begun) * 1e6
    if errors:
        raise errors[0]
    return total, each


@contextlib.contextmanager
def _started(threads: Iterator[threading.Thread]) -> Iterator[None]:
    running = list(threads)
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join()


def main() -> None:
    """Serves the bench on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--trust", type=Path, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--tcti")
    parser.add_argument("--version", default="TLSv1_3")
    parser.add_argument("--mode", choices=["full", "resumed", "kept"], default="full")
    arguments = parser.parse_args()
    version = ssl.TLSVersion[arguments.version]
    identity = Identity(
        key=parse_key_reference(arguments.key), certificate=arguments.certificate, trust=arguments.trust
    )
    context = client_context(identity, tcti=arguments.tcti, minimum_version=version, relay="never")  # tcti says it
    context.maximum_version = version
    client = Client(context, arguments.port)
    if arguments.mode == "resumed":
        client.any()
    elif arguments.mode == "kept":
        client.kept()
    request = getattr(client, arguments.mode)
    print("ready", flush=True)
    for line in sys.stdin:
        count, threads = map(int, line.split())
        total, each = timed(request, count, threads)
        print(f"{total:.0f}", *(f"{one:.0f}" for one in each), flush=True)
    client.close()


if __name__ == "__main__":
    main()
