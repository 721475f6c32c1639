"""A simulated TPM at a second address, where it is as slow as a chip: for programs that are started anew each time.

The relay's own ``--latency-model`` would be started with each of them, and take longer than the programs themselves.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from typing import TYPE_CHECKING

from tpm_mtls_relay.connection.transport import Limits, SwtpmTransport
from tpm_mtls_relay.messages.wire import HEADER
from tpm_mtls_relay.observers.latency import LatencyModel
from tpm_mtls_relay.observers.latency_file import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE = 60.0  # seconds


@contextlib.contextmanager
def slow_tpm(tcti: str, model: str) -> Iterator[str]:
    """The TCTI string of the simulated TPM at ``tcti``, as slow as the relay's latency model ``model`` says."""
    settings = tcti.partition(":")[2]
    port = int(settings.rpartition("=")[2])
    slowly = LatencyModel(SwtpmTransport(settings, Limits()), load_model(model))
    one_at_a_time = threading.Lock()

    def answer(command: bytes) -> bytes:
        with one_at_a_time:
            return slowly(command)

    def serve_commands(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while len(header := stream.read(HEADER.size)) == HEADER.size:
                client.sendall(answer(header + stream.read(HEADER.unpack(header)[1] - HEADER.size)))

    def serve_control(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port + 1), timeout=_PATIENCE) as control:
            while data := client.recv(4096):
                control.sendall(data)
                client.sendall(control.recv(4096))

    with _two_ports() as (data, control):
        threads = [
            threading.Thread(target=_accept, args=(listening, serve))
            for listening, serve in ((data, serve_commands), (control, serve_control))
        ]
        for thread in threads:
            thread.start()
        try:
            yield f"swtpm:host=127.0.0.1,port={data.getsockname()[1]}"
        finally:
            for listening in (data, control):
                listening.shutdown(socket.SHUT_RDWR)  # ends its thread's accept
            for thread in threads:
                thread.join()


def _accept(listening: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):  # it was shut down
        while True:
            client, _ = listening.accept()
            threading.Thread(target=_serve, args=(client, serve), daemon=True).start()


def _serve(client: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    with client, contextlib.suppress(ConnectionError):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        serve(client)


@contextlib.contextmanager
def _two_ports() -> Iterator[list[socket.socket]]:
    """Sockets that listen at a port and the next one: libtss2 expects swtpm's control channel there."""
    while True:
        with contextlib.ExitStack() as stack:
            first = random.randrange(20000, 32000, 2)  # noqa: S311 - a port, no secret
            try:
                both = [
                    stack.enter_context(socket.create_server(("127.0.0.1", first + offset), backlog=64))
                    for offset in (0, 1)
                ]
            except OSError:
                continue
            yield both
            return
