"""The event loop goes on while the TPM signs, and whatever else happens in the meantime ends cleanly.

The TPM is seen through a program that keeps a signature back until the test releases it: a loop that waited for it
could not do that, and the test would fail.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import contextvars
import gc
import socket
import ssl
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.streams.tls
import pytest
from anyio.abc import SocketAttribute

from support.certificates import TestCa
from support.tpm_keys import make_key
from support.tpm_proxy import HeldCommands, TpmProxy
from tpm_mtls.errors import KeyGoneError, TpmUnavailableError
from tpm_mtls.tls import IdentityContext, client_context, event_loop, server_context
from tpm_mtls.tls.event_loop import Bridge
from tpm_mtls.tls.objects import IdentityObject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

T = TypeVar("T")

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BOTH = pytest.mark.parametrize("version", [V1_3, V1_2], ids=lambda version: version.name)
HANDLE = 0x81000100
SIGN, LOAD = 0x15D, 0x157  # TPM_CC, TPM 2.0 Library part 2, table 11


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def software(ca: TestCa) -> Identity:
    return ca.software_identity("localhost")


@pytest.fixture
def identity(ca: TestCa, tpm: SimulatedTpm) -> Identity:
    key = make_key(tpm, ca.folder, handle=HANDLE)
    return ca.identity(key.reference, key.public_key, "localhost")


@pytest.fixture
def proxy(tpm: SimulatedTpm, tmp_path: Path) -> TpmProxy:
    return TpmProxy(tpm, tmp_path)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, work that is left to a thread fails the test."""

    def forbid() -> None:
        monkeypatch.setattr(event_loop, "_threads", lambda _: pytest.fail("a thread was asked"))

    return forbid


def run(test: Coroutine[Any, Any, T], *, limit: float = 30) -> T:
    """What ``test`` returns within ``limit`` seconds; the event loop may have had to report nothing."""
    reports: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        result = await asyncio.wait_for(test, limit)
        gc.collect()
        await asyncio.sleep(0)
        return result

    try:
        return asyncio.run(watched())
    finally:
        assert reports == []


async def while_held(held: HeldCommands, work: asyncio.Future[T]) -> None:
    """Returns when the TPM is at the signature, and the event loop has gone round some more."""
    while not held.seen():
        assert not work.done(), await work
        await asyncio.sleep(0.002)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not work.done()


@contextlib.asynccontextmanager
async def echo_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server of asyncio streams that sends back what it gets, until the clients close; yields its port."""
    tasks: list[asyncio.Task[Any] | None] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*filter(None, tasks))


async def by_streams(port: int, client: ssl.SSLContext, message: bytes = b"hello") -> bool:
    """Sends ``message`` and gets it back with asyncio's streams; says whether the connection was resumed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
    try:
        writer.write(message)
        assert await reader.readexactly(len(message)) == message
        return bool(writer.get_extra_info("ssl_object").session_reused)
    finally:
        writer.close()
        await writer.wait_closed()


async def by_start_tls(port: int, client: ssl.SSLContext, message: bytes = b"hello") -> bool:
    """The same over a TCP connection that is upgraded."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, protocol = await loop.create_connection(lambda: asyncio.StreamReaderProtocol(reader), "127.0.0.1", port)
    upgraded = await loop.start_tls(transport, protocol, client, server_hostname="localhost")
    assert upgraded is not None
    writer = asyncio.StreamWriter(upgraded, protocol, reader, loop)
    protocol._over_ssl = True  # type: ignore[attr-defined]  # as StreamWriter.start_tls does
    writer.write(message)
    assert await reader.readexactly(len(message)) == message
    resumed = bool(upgraded.get_extra_info("ssl_object").session_reused)
    upgraded.close()
    return resumed


async def by_anyio(port: int, client: ssl.SSLContext, message: bytes = b"hello") -> bool:
    """The same with anyio, which httpx uses."""
    async with await anyio.connect_tcp("127.0.0.1", port) as tcp:
        tls = await anyio.streams.tls.TLSStream.wrap(
            tcp, hostname="localhost", ssl_context=client, standard_compatible=False
        )
        await tls.send(message)
        received = b""
        while len(received) < len(message):
            received += await tls.receive()
        assert received == message
        attributes = tls.extra_attributes
        assert attributes[SocketAttribute.remote_port]() == port
        return bool(attributes[anyio.streams.tls.TLSAttribute.ssl_object]().session_reused)


WAYS = pytest.mark.parametrize("connect", [by_streams, by_start_tls, by_anyio])


# --- the loop goes on ---


@WAYS
@BOTH
def test_the_loop_goes_on_while_a_clients_tpm_signs(
    version: ssl.TLSVersion,
    connect: Callable[..., Awaitable[bool]],
    identity: Identity,
    software: Identity,
    proxy: TpmProxy,
    no_threads: Callable[[], None],
) -> None:
    held = proxy.hold(SIGN)
    client = client_context(identity, tcti=proxy.tcti, minimum_version=version)
    client.maximum_version = version

    async def test() -> None:
        async with echo_server(server_context(software, minimum_version=version)) as port:
            connecting = asyncio.ensure_future(connect(port, client))
            await while_held(held, connecting)
            held.release()
            assert not await connecting
            no_threads()
            assert [await connect(port, client, b"x" * 1_000_000) for _ in range(2)] == [True, True]

    run(test())


@BOTH
def test_the_loop_goes_on_while_a_servers_tpm_signs(
    version: ssl.TLSVersion, identity: Identity, software: Identity, proxy: TpmProxy, no_threads: Callable[[], None]
) -> None:
    held = proxy.hold(SIGN)
    server = server_context(identity, tcti=proxy.tcti, minimum_version=version)
    client = client_context(software, minimum_version=version)
    client.maximum_version = version

    async def test() -> None:
        async with echo_server(server) as port:
            connecting = asyncio.ensure_future(by_streams(port, client))
            await while_held(held, connecting)
            held.release()
            assert not await connecting
            no_threads()
            assert [await by_streams(port, client, b"x" * 1_000_000) for _ in range(2)] == [True, True]

    run(test())


def test_eight_handshakes_at_once_and_both_sides_in_one_tpm(identity: Identity, proxy: TpmProxy) -> None:
    held = proxy.hold(SIGN)
    server, client = server_context(identity, tcti=proxy.tcti), client_context(identity, tcti=proxy.tcti)

    async def test() -> None:
        async with echo_server(server) as port:
            together = asyncio.gather(*[way(port, client) for way in (by_streams, by_anyio) for _ in range(4)])
            await while_held(held, together)
            held.release()
            assert await together == [False] * 8
            assert True in await asyncio.gather(*[by_streams(port, client) for _ in range(8)])

    run(test())


@pytest.mark.parametrize("connect", [by_streams, by_anyio])
def test_the_loop_goes_on_when_a_server_has_forgotten_the_session(
    connect: Callable[..., Awaitable[bool]], identity: Identity, software: Identity, proxy: TpmProxy
) -> None:
    """Only its answer says that there will be a signature after all."""
    held = proxy.hold(SIGN, skip=1)
    client = client_context(identity, tcti=proxy.tcti)

    async def test() -> None:
        async with echo_server(server_context(software)) as port, echo_server(server_context(software)) as other:
            assert not await connect(port, client)
            kept = client.sessions._servers
            kept["localhost", other] = kept.pop(("localhost", port))
            connecting = asyncio.ensure_future(connect(other, client))
            await while_held(held, connecting)
            assert len(client.sessions) == 0
            held.release()
            assert not await connecting
            assert await connect(other, client)

    run(test())


def test_the_loop_goes_on_while_the_key_is_loaded_again(
    ca: TestCa, tpm: SimulatedTpm, software: Identity, proxy: TpmProxy
) -> None:
    key = make_key(tpm, ca.folder)
    held = proxy.hold(LOAD, skip=1)
    client = client_context(ca.identity(key.reference, key.public_key, "device"), tcti=proxy.tcti)

    async def test() -> None:
        async with echo_server(server_context(software)) as port:
            assert not await by_streams(port, client)
            loading = asyncio.ensure_future(asyncio.to_thread(client.reload))
            await while_held(held, loading)
            assert await by_streams(port, client)
            held.release()
            await loading
            assert not await by_streams(port, client)

    run(test())


def test_what_comes_meanwhile_waits(identity: Identity, software: Identity, proxy: TpmProxy) -> None:
    """An event loop calls again whenever the peer sends something. Its context variables are there afterwards."""
    held = proxy.hold(SIGN)
    client = client_context(identity, tcti=proxy.tcti)
    variable = contextvars.ContextVar("variable", default="lost")

    class Application(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(variable.get().encode())
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert data == b"kept"
            self.transport.close()

        def connection_lost(self, _: Exception | None) -> None:
            ended.set()

    ended = asyncio.Event()

    async def test() -> None:
        variable.set("kept")
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        protocol = asyncio.sslproto.SSLProtocol(loop, Application(), client, done, server_hostname="localhost")
        async with echo_server(server_context(software)) as port:
            await loop.create_connection(lambda: protocol, "127.0.0.1", port)
            await while_held(held, done)
            for _ in range(3):
                protocol.buffer_updated(0)
            assert not done.done()
            held.release()
            await ended.wait()

    run(test())


def test_a_software_key_needs_no_thread(software: Identity, no_threads: Callable[[], None]) -> None:
    no_threads()
    client = client_context(software)

    async def test() -> None:
        async with echo_server(server_context(software)) as port:
            assert [await by_streams(port, client) for _ in range(2)] == [False, True]
            assert [await by_anyio(port, client) for _ in range(2)] == [True, True]
            assert await by_start_tls(port, client)

    run(test())


def test_a_program_of_which_nothing_is_known_waits_itself(
    identity: Identity, software: Identity, tpm: SimulatedTpm, no_threads: Callable[[], None]
) -> None:
    no_threads()
    client, server = client_context(identity, tcti=tpm.tcti), server_context(software)

    async def test() -> None:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        near = client.wrap_bio(to_client, to_server, server_hostname="localhost")
        far = server.wrap_bio(to_server, to_client, server_side=True)
        for side in (near, far):
            with pytest.raises(ssl.SSLWantReadError):
                side.do_handshake()
        near.do_handshake()
        far.do_handshake()
        far.write(b"hello")
        assert near.read() == b"hello"

    run(test())


# --- what else happens in the meantime ---


@WAYS
def test_a_cancelled_connection_leaves_nothing(
    connect: Callable[..., Awaitable[bool]], identity: Identity, software: Identity, proxy: TpmProxy
) -> None:
    held = proxy.hold(SIGN)
    client = client_context(identity, tcti=proxy.tcti)

    async def test() -> None:
        async with echo_server(server_context(software)) as port:
            connecting = asyncio.ensure_future(connect(port, client))
            await while_held(held, connecting)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert not held.released()
            held.release()
            assert not await connect(port, client)

    run(test())


@pytest.mark.parametrize("reset", [False, True])
def test_a_peer_that_leaves_meanwhile(reset: bool, identity: Identity, software: Identity, proxy: TpmProxy) -> None:  # noqa: FBT001 - a parameter
    """The server's flight and then the end of the connection, which must not be taken for a handshake."""
    held = proxy.hold(SIGN)
    client = client_context(identity, tcti=proxy.tcti)
    server = server_context(software)

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.settimeout(20)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(connection.recv(65536))
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        connection.sendall(outgoing.read())
        while not held.seen():
            threading.Event().wait(0.005)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.ensure_future(asyncio.to_thread(serve, listening))
            with pytest.raises(ConnectionResetError):
                await by_streams(listening.getsockname()[1], client)
            assert not held.released()
            held.release()
            await serving

    run(test())


def test_a_handshake_that_takes_too_long(identity: Identity, software: Identity, proxy: TpmProxy) -> None:
    held = proxy.hold(SIGN)
    client = client_context(identity, tcti=proxy.tcti)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with echo_server(server_context(software)) as port:
            connecting = asyncio.ensure_future(
                asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
            )
            await while_held(held, connecting)
            later = loop.time() + asyncio.constants.SSL_HANDSHAKE_TIMEOUT
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "time", lambda: later)
                with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
                    await connecting
            held.release()
            assert not await by_streams(port, client)

    run(test(), limit=90)


@pytest.mark.parametrize("connect", [by_streams, by_anyio])
def test_a_loop_that_ends_meanwhile(
    connect: Callable[..., Awaitable[bool]], identity: Identity, software: Identity, proxy: TpmProxy
) -> None:
    held = proxy.hold(SIGN)
    client = client_context(identity, tcti=proxy.tcti)

    async def test(*, ends: bool) -> None:
        async with echo_server(server_context(software)) as port:
            connecting = asyncio.ensure_future(connect(port, client))
            if ends:
                await while_held(held, connecting)
                connecting.cancel()
            else:
                assert not await connecting

    run(test(ends=True))
    held.release()
    run(test(ends=False))


def test_signatures_for_connections_that_are_lost_are_not_made(
    identity: Identity, software: Identity, proxy: TpmProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a busy server has given up must not keep its TPM from the others."""
    begun: list[IdentityObject] = []
    sign = IdentityObject._sign

    def count(this: IdentityObject) -> None:
        begun.append(this)
        sign(this)

    monkeypatch.setattr(IdentityObject, "_sign", count)
    held = proxy.hold(SIGN)
    client = client_context(identity, tcti=proxy.tcti)

    async def test() -> None:
        async with echo_server(server_context(software)) as port:
            connecting = [asyncio.ensure_future(by_streams(port, client)) for _ in range(event_loop.THREADS + 6)]
            await while_held(held, connecting[0])
            assert len(begun) == event_loop.THREADS
            for each in connecting:
                each.cancel()
            await asyncio.wait(connecting)
            await asyncio.sleep(0.05)  # for the connections to be closed
            held.release()
            assert not await by_streams(port, client)
            assert len(begun) == event_loop.THREADS + 1

    run(test())


# --- errors ---


@pytest.mark.parametrize("connect", [by_streams, by_anyio])
def test_a_key_that_is_gone_is_named_and_loaded_again(
    connect: Callable[..., Awaitable[bool]], ca: TestCa, tpm: SimulatedTpm, software: Identity
) -> None:
    key = make_key(tpm, ca.folder)
    client = client_context(ca.identity(key.reference, key.public_key, "device"), tcti=tpm.tcti)
    tpm.restart()

    async def test() -> None:
        async with echo_server(server_context(software)) as port:
            with pytest.raises(ssl.SSLError, match="EVP lib") as caught:
                await connect(port, client)
            assert isinstance(caught.value.__cause__, KeyGoneError)
            assert not await connect(port, client)

    run(test())


@pytest.mark.parametrize("connect", [by_streams, by_anyio])
def test_a_refusal_that_comes_after_the_handshake_is_explained_too(
    connect: Callable[..., Awaitable[bool]], identity: Identity, tpm: SimulatedTpm, software: Identity
) -> None:
    """Without a TPM there is no certificate either, which the peer tells in the first data; then it hangs up."""
    client = client_context(identity, tcti=tpm.tcti)
    tpm.stop()
    server = server_context(software)

    def refuse(listening: socket.socket) -> None:  # asyncio's own servers do not say why
        connection, _ = listening.accept()
        connection.settimeout(20)
        with server.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
            with pytest.raises(ssl.SSLError, match="peer did not return a certificate"):
                tls.do_handshake()
            socket.socket.shutdown(tls, socket.SHUT_WR)
            while socket.socket.recv(tls, 1000):
                pass

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            refusing = asyncio.ensure_future(asyncio.to_thread(refuse, listening))
            with pytest.raises(ssl.SSLError, match="certificate required") as caught:
                await connect(listening.getsockname()[1], client)
            assert isinstance(caught.value.__cause__, TpmUnavailableError)
            await refusing

    run(test())


@pytest.mark.parametrize("connect", [by_streams, by_anyio])
def test_a_peer_that_is_not_trusted(
    connect: Callable[..., Awaitable[bool]], ca: TestCa, identity: Identity, tpm: SimulatedTpm
) -> None:
    client = client_context(identity, tcti=tpm.tcti)
    stranger = TestCa(ca.folder, "stranger")

    async def test() -> None:
        async with echo_server(server_context(stranger.software_identity("localhost"))) as port:
            with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
                await connect(port, client)

    run(test())


def test_a_client_that_a_server_does_not_trust(
    ca: TestCa, identity: Identity, software: Identity, tpm: SimulatedTpm
) -> None:
    server = server_context(identity, tcti=tpm.tcti)
    strange = TestCa(ca.folder, "stranger").software_identity("device")
    stranger = client_context(replace(strange, trust=ca.trust))

    async def test() -> None:
        async with echo_server(server) as port:
            with pytest.raises((ssl.SSLError, OSError, EOFError)):
                await by_streams(port, stranger)
            assert not await by_streams(port, client_context(software))

    run(test())


def test_errors_of_a_context_that_is_not_ours_are_left_as_they_are(ca: TestCa, software: Identity) -> None:
    """A server-name callback may choose one."""
    server, other = server_context(software), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.load_cert_chain(software.certificate, str(software.key))
    other.load_verify_locations(ca.trust)

    def choose(connection: ssl.SSLObject, *_: object) -> None:
        connection.context = other

    server.sni_callback = choose  # type: ignore[assignment]  # typeshed knows sockets only
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(ca.software_identity("device"))
    near = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (near, far):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    near.do_handshake()
    far.do_handshake()
    assert far.context is other
    to_server.write(b"no record of TLS")
    with pytest.raises(ssl.SSLError, match=r"(?i)wrong version number|record") as caught:
        far.read(10)
    assert caught.value.__cause__ is None


def test_a_program_that_is_not_asyncios_own(identity: Identity, tpm: SimulatedTpm) -> None:
    """Its frames may look like anything."""
    client: IdentityContext = client_context(identity, tcti=tpm.tcti)
    caller = {"ssl": ssl, "client": client, "__name__": "asyncio.sslproto"}
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    exec(  # noqa: S102 - code that claims to be asyncio's
        "def call(self, incoming, outgoing):\n"
        "    tls = client.wrap_bio(incoming, outgoing, server_hostname='localhost')\n"
        "    tls.do_handshake()\n",
        caller,
    )
    for this in (None, object()):
        with pytest.raises(ssl.SSLWantReadError):
            caller["call"](this, incoming, outgoing)  # type: ignore[operator]  # it is a function

    async def test() -> None:
        with pytest.raises(ssl.SSLWantReadError):
            caller["call"](object(), incoming, outgoing)  # type: ignore[operator]  # the same

    run(test())
    assert outgoing.pending


def test_a_bridge_hands_on_the_end_too() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    bridge = Bridge(incoming, outgoing)
    bridge.pull()
    incoming.write(b"in")
    incoming.write_eof()
    bridge.pull()
    assert (bridge.incoming.read(), bridge.incoming.eof) == (b"in", True)
    bridge.pull()
    bridge.outgoing.write(b"out")
    bridge.push()
    bridge.push()
    assert outgoing.read() == b"out"
