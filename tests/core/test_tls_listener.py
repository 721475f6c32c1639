"""Accepting TLS connections: a limit that holds, reports of what was refused, and an end in order."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.device_ca import DeviceCa
from support.https import device_context, tls_socket
from support.recorder import Recorder
from tpm_mtls.errors import UsageError
from tpm_mtls.tls import server_context
from tpm_mtls.tls.listener import Listener, bind
from tpm_mtls.tls.transport import TlsTimeouts

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tpm_mtls.identity import Identity


class Host:
    """A listener, the protocols that it made, and what it reported."""

    def __init__(self, context: ssl.SSLContext, *, connections: int, timeouts: TlsTimeouts) -> None:
        listening = bind("127.0.0.1", 0)
        self.port: int = listening.getsockname()[1]
        self.applications: asyncio.Queue[Recorder] = asyncio.Queue()
        self.reported: list[tuple[str, dict[str, Any]]] = []
        self.listener = Listener(
            listening,
            self._make,
            context=context,
            connections=connections,
            report=self._report,
            timeouts=timeouts,
        )

    def _make(self) -> Recorder:
        application = Recorder()
        self.applications.put_nowait(application)
        return application

    def _report(self, event: str, *, level: int = 0, **facts: Any) -> None:  # noqa: ANN401 - as `Report`
        assert level >= 0
        self.reported.append((event, facts))


@pytest.fixture
def ca(tmp_path: Path) -> DeviceCa:
    return DeviceCa(tmp_path / "ca")


@pytest.fixture
def device(ca: DeviceCa) -> Identity:
    return ca.device()


@pytest.fixture
def serve(ca: DeviceCa) -> Callable[..., None]:
    """Runs a coroutine function with a `Host`."""
    context = server_context(ca.server())

    @asynccontextmanager
    async def running(connections: int, timeouts: TlsTimeouts) -> AsyncIterator[Host]:
        host = Host(context, connections=connections, timeouts=timeouts)
        host.listener.start()
        try:
            yield host
        finally:
            await host.listener.stop()
            await host.listener.drain(0)

    def start(
        test: Callable[[Host], Awaitable[None]], *, connections: int = 8, timeouts: TlsTimeouts | None = None
    ) -> None:
        async def run() -> None:
            async with running(connections, timeouts or TlsTimeouts()) as host, asyncio.timeout(20):
                await test(host)

        asyncio.run(run())

    return start


async def next_of(host: Host) -> Recorder:
    """The protocol of the next connection, once it stands."""
    application = await host.applications.get()
    await application.made.wait()
    return application


def test_each_connection_gets_a_protocol_of_its_own(serve: Callable[..., None], device: Identity) -> None:
    async def test(host: Host) -> None:
        for number in (1, 2):
            with await asyncio.to_thread(tls_socket, host.port, device_context(device)) as sock:
                application = await next_of(host)
                await asyncio.to_thread(sock.sendall, b"%d" % number)
                assert await application.receive(1) == b"%d" % number
            await application.lost.wait()
        assert host.reported == []

    serve(test)


def test_one_more_than_allowed_waits_until_one_ends(serve: Callable[..., None], device: Identity) -> None:
    async def test(host: Host) -> None:
        context = device_context(device)
        with await asyncio.to_thread(tls_socket, host.port, context) as first:
            second = asyncio.create_task(asyncio.to_thread(tls_socket, host.port, context))
            await asyncio.sleep(0.2)
            assert not second.done()
            assert host.applications.qsize() == 1
            first.close()
            (await second).close()
        assert host.reported[0] == ("connection limit reached", {"connections": 1})

    serve(test, connections=1)


def test_refused_handshakes_are_reported_and_free_their_place(
    serve: Callable[..., None], device: Identity, tmp_path: Path
) -> None:
    stranger = DeviceCa(tmp_path / "other", name="Other").device()

    def refused(port: int) -> bytes:
        with tls_socket(port, device_context(stranger, trust=device)) as sock:
            return sock.recv(1)

    async def test(host: Host) -> None:
        with pytest.raises(OSError, match="TLSV1_ALERT_UNKNOWN_CA"):
            await asyncio.to_thread(refused, host.port)
        with socket.create_connection(("127.0.0.1", host.port), timeout=10) as silent:
            assert await asyncio.to_thread(silent.recv, 1) == b""
        (await asyncio.to_thread(tls_socket, host.port, device_context(device))).close()
        assert [facts for event, facts in host.reported if event == "handshake refused"] == [
            {"remote": "127.0.0.1", "reason": "CERTIFICATE_VERIFY_FAILED", "cause": None},
            {"remote": "127.0.0.1", "reason": "timed out", "cause": None},
        ]

    serve(test, connections=1, timeouts=TlsTimeouts(handshake=0.3))


def test_the_end_cuts_handshakes_and_gives_the_others_their_time(serve: Callable[..., None], device: Identity) -> None:
    async def test(host: Host) -> None:
        with (
            await asyncio.to_thread(tls_socket, host.port, device_context(device)) as sock,
            socket.create_connection(("127.0.0.1", host.port), timeout=10) as shaking,
        ):
            application = await next_of(host)
            await asyncio.sleep(0.1)
            await host.listener.stop()
            assert await asyncio.to_thread(shaking.recv, 1) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", host.port), timeout=10)

            draining = asyncio.create_task(host.listener.drain(10))
            await asyncio.to_thread(sock.sendall, b"goes on")
            assert await application.receive(7) == b"goes on"
            assert application.transport is not None
            application.transport.close()
            assert await asyncio.to_thread(sock.recv, 1) == b""
            sock.close()
            await asyncio.wait_for(draining, 5)

    serve(test)


def test_whoever_does_not_end_in_time_is_cut(serve: Callable[..., None], device: Identity) -> None:
    async def test(host: Host) -> None:
        with await asyncio.to_thread(tls_socket, host.port, device_context(device)):
            application = await next_of(host)
            await host.listener.stop()
            await asyncio.wait_for(host.listener.drain(0.1), 5)
            assert application.events == ["lost"]

    serve(test)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on {host} port 0: "):
        bind(host, 0)


def test_an_address_that_is_taken_is_refused() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}: address already in use"):
            bind("127.0.0.1", port)


def test_it_brings_no_http_and_contexts_bring_no_asyncio() -> None:
    program = (
        "import sys; import tpm_mtls.tls; assert 'asyncio' not in sys.modules\n"
        "import tpm_mtls.tls.listener; assert not {'aiohttp', 'cryptography'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
