"""TLS between TCP and a protocol: flow control, orderly ends, and an event loop that never waits for a handshake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from support.device_ca import DeviceCa
from support.https import device_context, tls_socket
from support.recorder import Recorder
from support.waiting import comes
from tpm_mtls.tls import server_context
from tpm_mtls.tls.transport import TlsProtocol, TlsTimeouts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tpm_mtls.identity import Identity


@pytest.fixture
def ca(tmp_path: Path) -> DeviceCa:
    return DeviceCa(tmp_path / "ca")


@pytest.fixture
def device(ca: DeviceCa) -> Identity:
    return ca.device()


class Pair:
    """A client's TLS socket (blocking, to be used in threads) and the server's side of it."""

    def __init__(self, sock: ssl.SSLSocket, application: Recorder, protocol: TlsProtocol) -> None:
        self.sock = sock
        self.application = application
        self.protocol = protocol

    @property
    def transport(self) -> asyncio.Transport:
        assert self.application.transport is not None
        return self.application.transport


@pytest.fixture
def with_pair(ca: DeviceCa, device: Identity) -> Iterator[Callable[..., None]]:
    """Runs a coroutine function with a connected `Pair`."""
    context = server_context(ca.server())

    async def run(test: Callable[[Pair], Awaitable[None]], timeouts: TlsTimeouts) -> None:
        loop = asyncio.get_running_loop()
        application, protocols = Recorder(), []

        def refused(_: TlsProtocol, error: Exception) -> None:
            raise AssertionError(error)

        def make() -> TlsProtocol:
            protocol = TlsProtocol(
                partial(context.wrap_bio, server_side=True),
                lambda: application,
                workers=workers,
                refused=refused,
                closed=protocols.remove,
                timeouts=timeouts,
            )
            protocols.append(protocol)
            return protocol

        with ThreadPoolExecutor(1) as workers:
            server = await loop.create_server(make, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            sock = await asyncio.to_thread(tls_socket, port, device_context(device))
            await application.made.wait()
            try:
                await asyncio.wait_for(test(Pair(sock, application, protocols[0])), 20)
            finally:
                sock.close()
                server.close()
                await application.lost.wait()
                await server.wait_closed()
                assert protocols == []

    def start(test: Callable[[Pair], Awaitable[None]], timeouts: TlsTimeouts | None = None) -> None:
        asyncio.run(run(test, timeouts or TlsTimeouts()))

    return start


class AtOnce(Executor):
    """Works in the event loop; ``then`` is called right before somebody is told that his work was done."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:  # noqa: ANN401 - Executor's
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **options))
        except ssl.SSLWantReadError as error:
            done.set_exception(error)
        else:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._then)  # a turn later, as a future tells who waits for it
        return done


def test_an_application_is_not_begun_on_a_connection_that_was_aborted_meanwhile(ca: DeviceCa, device: Identity) -> None:
    """It would be told of the loss before it has done its first step: aiohttp's protocol fails then."""

    async def run() -> None:
        applications: list[Recorder] = []
        protocols: list[TlsProtocol] = []
        gone = asyncio.Event()

        def make_application() -> Recorder:
            applications.append(Recorder())
            return applications[-1]

        def abort() -> None:
            protocols[0].abort()

        def make() -> TlsProtocol:
            protocols.append(
                TlsProtocol(
                    partial(server_context(ca.server()).wrap_bio, server_side=True),
                    make_application,
                    workers=AtOnce(abort),
                    refused=lambda *_: None,
                    closed=lambda _: gone.set(),
                    timeouts=TlsTimeouts(),
                )
            )
            return protocols[-1]

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        async with server, asyncio.timeout(20):
            with contextlib.suppress(OSError):
                port = server.sockets[0].getsockname()[1]
                (await asyncio.to_thread(tls_socket, port, device_context(device))).close()
            await gone.wait()
        assert applications == []
        assert not protocols[0].open

    asyncio.run(run())


def test_much_data_goes_both_ways(with_pair: Callable[..., None]) -> None:
    data = bytes(range(256)) * 4 * 4096

    async def test(pair: Pair) -> None:
        await asyncio.to_thread(pair.sock.sendall, data)
        assert await pair.application.receive(len(data)) == data
        pair.transport.writelines([data[:1000], data[1000:]])
        assert await asyncio.to_thread(receive, pair.sock, len(data)) == data
        assert "pause" in pair.application.events
        assert "resume" in pair.application.events

    with_pair(test)


def receive(sock: ssl.SSLSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += sock.recv(65536)
    return bytes(data)


def test_nothing_is_delivered_while_reading_is_paused(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        pair.transport.pause_reading()
        await asyncio.to_thread(pair.sock.sendall, b"later")
        await asyncio.sleep(0.1)
        assert not pair.application.data
        pair.transport.resume_reading()
        pair.transport.resume_reading()
        assert await pair.application.receive(1) == b"later"

    with_pair(test)


def test_an_application_that_pauses_in_the_middle_gets_the_rest_later(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        def first(data: bytes) -> None:
            pair.application.data += data
            pair.transport.pause_reading()

        pair.application.data_received = first  # type: ignore[method-assign] # the test's own class
        await asyncio.to_thread(pair.sock.sendall, b"x" * 60_000)
        await comes(lambda: pair.application.data, "nothing was received")
        await asyncio.sleep(0.05)
        assert len(pair.application.data) <= 16384

        def all_came() -> bool:
            pair.transport.resume_reading()
            return len(pair.application.data) == 60_000

        await comes(all_came, "the rest was not received")

    with_pair(test)


def test_a_peer_that_does_not_read_is_cut_off(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        pair.transport.write(b"x" * 16 * 1024 * 1024)
        begun = time.monotonic()
        await pair.application.lost.wait()
        assert time.monotonic() - begun < 5
        assert pair.application.events == ["pause", "lost"]

    with_pair(test, TlsTimeouts(write=0.2))


def test_close_sends_what_waits_and_says_goodbye(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        pair.transport.write(b"the last word")
        pair.transport.close()
        pair.transport.close()
        assert pair.transport.is_closing()
        pair.transport.write(b"too late")
        pair.transport.resume_reading()
        assert await asyncio.to_thread(pair.sock.recv, 100) == b"the last word"
        assert await asyncio.to_thread(pair.sock.recv, 100) == b""  # close_notify: an end that TLS vouches for

    with_pair(test)


def test_close_while_reading_is_paused_still_sees_the_peer_go(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        pair.transport.pause_reading()
        await asyncio.to_thread(pair.sock.sendall, b"nobody reads this")
        pair.transport.close()
        assert await asyncio.to_thread(pair.sock.recv, 100) == b""
        pair.sock.close()
        await asyncio.wait_for(pair.application.lost.wait(), 1)
        assert not pair.application.data

    with_pair(test)


def test_the_peers_goodbye_closes_the_connection(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        with contextlib.closing(await asyncio.to_thread(pair.sock.unwrap)):
            await asyncio.wait_for(pair.application.lost.wait(), 5)

    with_pair(test)


def test_abort_closes_at_once(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        pair.transport.abort()
        await asyncio.wait_for(pair.application.lost.wait(), 1)
        pair.transport.write(b"too late")

    with_pair(test)


def test_what_is_not_tls_ends_the_connection_with_an_alert(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        raw = socket.socket(fileno=socket.dup(pair.sock.fileno()))
        with raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
                await asyncio.to_thread(pair.sock.recv, 1)

    with_pair(test)


def test_the_transport_knows_the_connection(with_pair: Callable[..., None]) -> None:
    async def test(pair: Pair) -> None:
        info = pair.transport.get_extra_info
        assert info("ssl_object") is pair.protocol.tls
        assert info("sslcontext") is pair.protocol.tls.context
        assert info("peername")[0] == "127.0.0.1"
        assert info("nonsense", 5) == 5

    with_pair(test)


def test_the_event_loop_runs_on_during_a_slow_handshake(ca: DeviceCa, device: Identity) -> None:
    """A TPM's signature takes up to 0.6 s; here the handshake is held up that long."""
    context = server_context(ca.server())
    entered, release = threading.Event(), threading.Event()

    class SlowObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            entered.set()
            assert release.wait(10)
            super().do_handshake()

    context.sslobject_class = SlowObject

    async def run() -> None:
        loop = asyncio.get_running_loop()
        application = Recorder()
        with ThreadPoolExecutor(1) as workers:
            server = await loop.create_server(
                lambda: TlsProtocol(
                    partial(context.wrap_bio, server_side=True),
                    lambda: application,
                    workers=workers,
                    refused=lambda *_: None,
                    closed=lambda _: None,
                    timeouts=TlsTimeouts(),
                ),
                "127.0.0.1",
                0,
            )
            port = server.sockets[0].getsockname()[1]
            connecting = asyncio.create_task(asyncio.to_thread(tls_socket, port, device_context(device)))
            await asyncio.to_thread(entered.wait)
            release.set()  # reached only because the loop runs while the handshake waits
            (await connecting).close()
            await application.lost.wait()
            server.close()
            await server.wait_closed()

    asyncio.run(run())
