"""A client's connections resume by themselves, and only where they may."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import select
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.certificates import TestCa
from support.handshakes import handshake
from support.tpm_keys import make_key
from support.tpm_trace import CommandTrace
from tpm_mtls.openssl import sessions as openssl_sessions
from tpm_mtls.tls import IdentityContext, client_context, server_context, trust_context
from tpm_mtls.tls.sessions import SERVERS, SESSIONS, SessionCache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.openssl.sessions import Session

# CPython 3.12 and newer warn about forks beside threads, and pytest-xdist has some
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
HANDLE = 0x81000100
BOTH = pytest.mark.parametrize("version", [V1_3, V1_2], ids=lambda version: version.name)


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def server(ca: TestCa) -> IdentityContext:
    return server_context(ca.software_identity("localhost"), minimum_version=V1_2)


def make_client(ca: TestCa, version: ssl.TLSVersion = V1_3) -> IdentityContext:
    client = client_context(ca.software_identity("device"), minimum_version=version)
    client.maximum_version = version
    return client


@pytest.fixture
def client(ca: TestCa) -> IdentityContext:
    return make_client(ca)


def resumed(client: IdentityContext, server: ssl.SSLContext, name: str = "localhost") -> bool:
    """Whether a new connection was resumed; it is mutually authenticated in any case."""
    seen = handshake(client, server, name=name, resume=True)
    assert (seen.client, seen.server) == ("device", name)
    return seen.resumed


class Listener:
    """A TLS server on a port of its own, which greets and then waits for the client's end."""

    def __init__(self, context: ssl.SSLContext, port: int = 0, *, greeting: bytes = b"welcome\n") -> None:
        self.greeting = greeting
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with connection, contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(self.greeting)
            tls.recv(1)

    def connect(self, client: ssl.SSLContext, *, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        """A connection that has read the greeting."""
        tcp = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        with contextlib.ExitStack() as stack:
            tls = stack.enter_context(client.wrap_socket(tcp, server_hostname="localhost", session=session))
            assert tls.recv(16) == self.greeting
            stack.pop_all()
        return tls

    def visit(self, client: ssl.SSLContext) -> bool:
        """Connects, and says whether that was resumed."""
        with self.connect(client) as tls:
            return bool(tls.session_reused)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._listening.close()


@pytest.fixture
def listener(server: IdentityContext) -> Iterator[Listener]:
    listener = Listener(server)
    yield listener
    listener.close()


# --- what it is for ---


@BOTH
def test_a_resumed_handshake_sends_the_tpm_nothing(
    version: ssl.TLSVersion, ca: TestCa, server: IdentityContext, tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tpm, ca.folder, handle=HANDLE)
    trace = CommandTrace(tpm, ca.folder, monkeypatch)
    identity = ca.identity(key.reference, key.public_key, "device")
    client = client_context(identity, tcti=trace.tcti, minimum_version=version)
    client.maximum_version = version
    assert not resumed(client, server)
    commands = trace.commands()
    assert commands[-1] == "Sign"
    assert [resumed(client, server) for _ in range(4)] == [True] * 4
    assert trace.commands() == commands
    client.sessions.clear()
    assert not resumed(client, server)
    assert trace.commands().count("Sign") == 2


@BOTH
def test_a_connection_that_ends_without_a_farewell_leaves_its_session(
    version: ssl.TLSVersion, ca: TestCa, listener: Listener
) -> None:
    """http.client, urllib3 and httpx close so; OpenSSL then spoils the connection's own session."""
    client = make_client(ca, version)
    for expected in (False, True, True):
        connection = listener.connect(client)
        assert connection.session_reused is expected
        connection.close()
        del connection


def test_a_kept_connection_lets_others_resume(client: IdentityContext, listener: Listener) -> None:
    with listener.connect(client), listener.connect(client) as second, listener.connect(client) as third:
        assert second.session_reused
        assert third.session_reused


@BOTH
def test_a_session_serves_a_socket_that_connects_later_or_does_not_block(
    version: ssl.TLSVersion, ca: TestCa, listener: Listener
) -> None:
    client = make_client(ca, version)
    assert not listener.visit(client)
    with client.wrap_socket(socket.socket(), server_hostname="localhost") as late:
        late.settimeout(20)
        late.connect(("127.0.0.1", listener.port))
        assert late.session_reused
        assert late.recv(16) == b"welcome\n"
    tcp = socket.create_connection(("127.0.0.1", listener.port), timeout=20)
    with client.wrap_socket(tcp, server_hostname="localhost", do_handshake_on_connect=False) as unhurried:
        unhurried.setblocking(False)
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                unhurried.do_handshake()
                break
            select.select([unhurried], [], [], 20)
        assert unhurried.session_reused
        unhurried.settimeout(20)
        buffer = bytearray(8)
        assert unhurried.recv_into(buffer) == 8


def test_32_threads_share_the_sessions(client: IdentityContext, server: IdentityContext) -> None:
    with ThreadPoolExecutor(32) as pool:
        seen = list(pool.map(lambda _: resumed(client, server), range(96)))
    assert True in seen
    assert len(client.sessions) <= SESSIONS
    assert server.session_stats()["hits"] == seen.count(True)


# --- used once, and limited ---


def test_a_ticket_is_used_once(client: IdentityContext, listener: Listener) -> None:
    listener.visit(client)
    tcp = [socket.create_connection(("127.0.0.1", listener.port), timeout=20) for _ in range(2)]
    with (
        client.wrap_socket(tcp[0], server_hostname="localhost") as first,
        client.wrap_socket(tcp[1], server_hostname="localhost") as second,
    ):
        assert (first.session_reused, second.session_reused) == (True, False)


def test_a_ticket_that_was_used_does_not_come_back(client: IdentityContext, server: IdentityContext) -> None:
    """A server that sends no new ones ends the resumption, not the secrecy of who connects."""
    assert not resumed(client, server)
    server.num_tickets = 0
    assert resumed(client, server)
    assert len(client.sessions) == 0
    assert not resumed(client, server)


def test_several_connections_at_once_leave_and_use_several_sessions(
    client: IdentityContext, listener: Listener
) -> None:
    for expected in ([False] * 10, [True] * SESSIONS + [False] * 2):
        tcp = [socket.create_connection(("127.0.0.1", listener.port), timeout=20) for _ in range(10)]
        connections = [client.wrap_socket(each, server_hostname="localhost") for each in tcp]
        assert [each.session_reused for each in connections] == expected
        for each in connections:
            assert each.recv(16) == b"welcome\n"
            each.close()
        assert len(client.sessions) == SESSIONS


class Fake:
    """In place of a session."""

    def __init__(self, number: int, ends: float) -> None:
        self.number = number
        self.ends = ends


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "take", "later", "reload", "clear"]),
            st.integers(0, SERVERS + 3),
            st.integers(-1, 1),
            st.integers(1, 30),
        ),
        max_size=200,
    )
)
def test_the_cache_gives_each_session_once_to_its_server_and_generation(
    steps: list[tuple[str, int, int, int]],
) -> None:
    now = 0.0
    cache = SessionCache(clock=lambda: now)
    generation = 1
    assert cache.take(("name", 0), generation) is None
    model: dict[int, list[Fake]] = {}
    for number, (step, server, older, seconds) in enumerate(steps):
        key = ("name", server)
        if step == "put":
            fake = Fake(number, now + seconds)
            cache.put(key, generation + min(older, 0), cast("Session", fake))
            if older >= 0:
                model[server] = [*model.pop(server, []), fake][-SESSIONS:]
                if len(model) > SERVERS:
                    del model[next(iter(model))]
        elif step == "take":
            taken = cache.take(key, generation + min(older, 0))
            kept = model.get(server, []) if older >= 0 else []
            while kept and kept[-1].ends <= now:
                kept.pop()
            assert taken is (kept.pop() if kept else None)
        elif step == "later":
            now += seconds
        else:
            model.clear()
            if step == "reload":
                generation += 1
                assert cache.take(key, generation) is None
            else:
                cache.clear()
        assert len(cache) == sum(map(len, model.values()))


def test_the_cache_forgets_the_servers_that_were_not_used_for_longest() -> None:
    cache = SessionCache(clock=lambda: 0)
    for number in [*range(SERVERS), 0, SERVERS]:
        cache.put(("name", number), 0, cast("Session", Fake(number, 1)))
    assert len(cache) == SERVERS + 1  # two of number 0
    assert cache.take(("name", 1), 0) is None
    assert cache.take(("name", 0), 0) is not None


@BOTH
def test_a_session_ends_when_the_server_said(version: ssl.TLSVersion, server: IdentityContext, ca: TestCa) -> None:
    later = 0
    client = make_client(ca, version)
    client.sessions = SessionCache(clock=lambda: time.time() + later)
    assert [resumed(client, server) for _ in range(2)] == [False, True]
    later = 7190
    assert resumed(client, server)
    later = 7201  # two hours: OpenSSL's own limit, for servers and clients
    assert not resumed(client, server)


# --- not where it may not ---


def test_a_session_is_for_one_name(client: IdentityContext, server: IdentityContext, ca: TestCa) -> None:
    assert not resumed(client, server)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        resumed(client, server, "other.example")
    assert not resumed(client, server_context(ca.software_identity("other.example")), "other.example")
    assert resumed(client, server)


def test_a_session_is_for_one_port(client: IdentityContext, listener: Listener, ca: TestCa) -> None:
    other = Listener(server_context(ca.software_identity("localhost")))
    try:
        assert [listener.visit(client), other.visit(client)] == [False, False]
        assert [listener.visit(client), other.visit(client)] == [True, True]
    finally:
        other.close()


@BOTH
def test_a_server_that_knows_nothing_of_a_session_makes_a_full_handshake(
    version: ssl.TLSVersion, ca: TestCa, server: IdentityContext
) -> None:
    """It was started anew, or is another one behind the same name."""
    client = make_client(ca, version)
    other = server_context(ca.software_identity("localhost"), minimum_version=V1_2)
    assert not resumed(client, server)
    assert not resumed(client, other)
    assert resumed(client, other)
    assert not resumed(client, server)


def test_a_session_does_not_let_an_impostor_in(client: IdentityContext, server: IdentityContext, ca: TestCa) -> None:
    assert not resumed(client, server)
    stranger = TestCa(ca.folder, "stranger")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
        resumed(client, server_context(stranger.software_identity("localhost")))


@pytest.mark.parametrize("kind", ["software", "persistent"])
def test_reload_ends_the_sessions_of_the_old_certificate(
    kind: str, ca: TestCa, listener: Listener, tpm: SimulatedTpm
) -> None:
    if kind == "software":
        identity = ca.software_identity("device")
    else:
        key = make_key(tpm, ca.folder, handle=HANDLE)
        identity = ca.identity(key.reference, key.public_key, "device")
    client = client_context(identity, tcti=tpm.tcti)
    assert [listener.visit(client), listener.visit(client)] == [False, True]
    tcp = socket.create_connection(("127.0.0.1", listener.port), timeout=20)
    with client.wrap_socket(tcp, server_hostname="localhost") as old:
        client.reload()
        assert old.recv(16) == b"welcome\n"  # and with it a ticket for the old certificate
        assert not listener.visit(client)
    assert listener.visit(client)


def test_a_callers_own_session_wins(client: IdentityContext, listener: Listener, ca: TestCa) -> None:
    with listener.connect(client) as first:
        own = first.session
    assert own is not None
    kept = len(client.sessions)
    with listener.connect(client, session=own) as second:
        assert second.session_reused
        assert len(client.sessions) == kept + 1
    with (
        socket.create_connection(("127.0.0.1", listener.port)) as tcp,
        pytest.raises(ValueError, match="different SSLContext"),
    ):
        make_client(ca).wrap_socket(tcp, server_hostname="localhost", session=own)


def test_a_forked_child_begins_without_sessions(client: IdentityContext, listener: Listener) -> None:
    listener.visit(client)
    with client.sessions._lock:  # as another thread may
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(client, listener.port))
        child.start()
    child.join(20)
    assert child.exitcode == 0
    assert listener.visit(client)


def _in_child(client: IdentityContext, port: int) -> None:
    assert len(client.sessions) == 0
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as tcp,
        client.wrap_socket(tcp, server_hostname="localhost") as tls,
    ):
        assert not tls.session_reused
        tls.recv(16)
    os._exit(0 if len(client.sessions) == 1 else 1)


def test_a_context_without_an_own_certificate_keeps_no_sessions(ca: TestCa, listener: Listener) -> None:
    """There is nothing to save."""
    client = trust_context(ca.trust)
    with pytest.raises(ssl.SSLError, match="certificate required"):
        listener.visit(client)
    assert len(client.sessions) == 0


def test_a_context_with_sessions_is_freed_at_once(ca: TestCa, server: IdentityContext, tpm: SimulatedTpm) -> None:
    """And its key flushed: not whenever the garbage collector next looks for cycles."""
    key = make_key(tpm, ca.folder)
    client = client_context(ca.identity(key.reference, key.public_key, "device"), tcti=tpm.tcti)
    gc.collect()
    gc.disable()
    try:
        assert [resumed(client, server) for _ in range(2)] == [False, True]
        assert len(tpm.handles("transient")) == 1
        del client
        assert tpm.handles("transient") == []
    finally:
        gc.enable()


# --- servers that behave otherwise ---


def test_a_server_that_is_gone_before_the_handshake(client: IdentityContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tcp = socket.create_connection(listening.getsockname(), timeout=20)
        with client.wrap_socket(tcp, server_hostname="localhost", do_handshake_on_connect=False) as tls:
            far, _ = listening.accept()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            assert select.select([tls], [], [], 20)[0]
            with pytest.raises(OSError, match=r"reset|not connected"):
                tls.do_handshake()


def test_a_server_that_sends_its_ticket_late_or_never(
    client: IdentityContext, ca: TestCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program reads costs a look at the session only for a while."""
    looks = 0
    look = openssl_sessions.resumable

    def count(connection: int, *, besides: Session | None) -> Session | None:
        nonlocal looks
        looks += 1
        return look(connection, besides=besides)

    monkeypatch.setattr(openssl_sessions, "resumable", count)
    context = server_context(ca.software_identity("localhost"))
    context.num_tickets = 0
    listener = Listener(context, greeting=b"x")
    try:
        tcp = socket.create_connection(("127.0.0.1", listener.port), timeout=20)
        with client.wrap_socket(tcp, server_hostname="localhost") as tls:
            tls.setblocking(False)
            for _ in range(40):
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.recv(1)
    finally:
        listener.close()
    assert len(client.sessions) == 0
    assert 0 < looks < 20


def test_another_pythons_connection_has_no_sessions(client: IdentityContext) -> None:
    with socket.socket() as plain:
        assert openssl_sessions.address(plain, id(client)) is None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    inner = connection._sslobj  # type: ignore[attr-defined]  # private, so not in typeshed
    assert openssl_sessions.address(inner, id(client)) is not None
    assert openssl_sessions.address(inner, id(incoming)) is None
