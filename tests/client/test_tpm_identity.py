"""The same client with a key that lies in a TPM."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from support.tpm_keys import make_key
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import AuthorizationError, ForeignKeyError, HandshakeError, TpmUnavailableError
from tpm_mtls_client import Timeout, connect
from tpm_mtls_client.pool import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.certificates import TestCa
    from support.https_server import MakeServer
    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity
    from tpm_mtls_client import Client

HANDLE = 0x81000100


def connected(identity: Identity, tpm: SimulatedTpm, authorization: Secret | None = None) -> Client:
    return connect(identity, tcti=tpm.tcti, authorization=authorization, timeout=Timeout(5, 5, 10))


@pytest.fixture(autouse=True)
def _keys_leave_the_tpm(tpm: SimulatedTpm) -> Iterator[None]:  # noqa: ARG001 - looks for leaks after this
    """A context gives its temporary key back when it is collected; an error that was raised may hold it until then."""
    yield
    gc.collect()


@pytest.fixture(params=["tss2", "persistent"])
def tpm_device(request: pytest.FixtureRequest, ca: TestCa, tpm: SimulatedTpm, tmp_path: Path) -> Identity:
    """A device whose key is in the TPM."""
    key = make_key(tpm, tmp_path, handle=HANDLE if request.param == "persistent" else None)
    return ca.identity(key.reference, key.public_key, "device-1")


def test_the_server_sees_the_devices_certificate(tpm_device: Identity, tpm: SimulatedTpm, serve: MakeServer) -> None:
    server = serve()
    with connected(tpm_device, tpm) as client:
        for _ in range(2):
            assert client.get(server.url()).json()["device"] == "device-1"
    assert server.handshakes == 1


def test_a_lost_key_is_loaded_again_and_the_request_sent_once(
    tpm_device: Identity, tpm: SimulatedTpm, serve: MakeServer
) -> None:
    """The TPM restarts while a connection is kept; the next one needs a signature."""
    server, other = serve(), serve()
    with connected(tpm_device, tpm) as client:
        client.get(server.url())
        tpm.restart()
        assert client.get(server.url()).status == 200, "a kept connection needs no TPM"
        assert client.post(other.url(), body=b"only once").json()["body"] == "only once"
        server.drop_connections()
        assert client.get(server.url()).status == 200
    assert [request.body for request in other.requests] == [b"only once"]


def test_many_threads_meet_a_restarted_tpm(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer) -> None:
    key = make_key(tpm, tmp_path)
    server = serve()
    with connected(ca.identity(key.reference, key.public_key, "device-1"), tpm) as client:
        client.get(server.url())
        tpm.restart()
        server.drop_connections()
        barrier = threading.Barrier(8)

        def ask(number: int) -> str:
            barrier.wait(10)
            return str(client.post(server.url(), body=f"{number}".encode()).json()["body"])

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(ask, range(8))) == [f"{number}" for number in range(8)]
    assert len(server.requests) == 9


def test_32_threads_share_one_client(tpm_device: Identity, tpm: SimulatedTpm, serve: MakeServer) -> None:
    server = serve()
    barrier = threading.Barrier(32)
    with connected(tpm_device, tpm) as client:

        def ask(number: int) -> str:
            barrier.wait(10)
            return str(client.post(server.url(), body=f"{number}".encode()).json()["body"])

        with ThreadPoolExecutor(32) as threads:
            assert list(threads.map(ask, range(32))) == [f"{number}" for number in range(32)]
    assert 1 < server.handshakes <= 32


def test_a_tpm_that_was_switched_off_is_named(tpm_device: Identity, tpm: SimulatedTpm, serve: MakeServer) -> None:
    server = serve()
    with connected(tpm_device, tpm) as client:
        client.get(server.url())
        tpm.stop()
        assert client.get(server.url()).status == 200, "a kept connection needs no TPM"
        server.drop_connections()
        assert client.get(server.url()).status == 200, "nor does a resumed session"
        server.drop_connections()
        client.context.sessions.clear()
        with pytest.raises(TpmUnavailableError, match="no TPM answers at swtpm:"):
            client.get(server.url())
    assert len(server.requests) == 3


def test_a_tpm_that_came_back_is_used_again(tpm_device: Identity, tpm: SimulatedTpm, serve: MakeServer) -> None:
    server = serve()
    with connected(tpm_device, tpm) as client:
        tpm.stop()
        with pytest.raises(TpmUnavailableError):
            client.post(server.url(), body=b"first")
        tpm.restart()
        client.post(server.url(), body=b"second")
    assert [request.body for request in server.requests] == [b"second"]


def test_a_handshake_that_the_peer_rejects_for_a_lost_key_is_repeated(
    tpm_device: Identity, tpm: SimulatedTpm, serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TPM is away while OpenSSL asks it, so that no certificate is sent, and back when the peer refuses that."""
    stops = [True, False]
    real = Connection.request

    def come_back(connection: Connection, *arguments: object, **options: object) -> None:
        tpm.restart()
        real(connection, *arguments, **options)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(Connection, "request", come_back)
    server = serve(configure=lambda context: setattr(context, "sni_callback", lambda *_: _stop(tpm, stops)))
    with connected(tpm_device, tpm) as client:
        client.post(server.url(), body=b"only once")
    assert [request.body for request in server.requests] == [b"only once"]
    assert server.connections == 2
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in server.failures[0]


def test_a_failure_of_the_peer_costs_no_retry(
    tpm_device: Identity, tpm: SimulatedTpm, serve: MakeServer, ca: TestCa, other_ca: TestCa
) -> None:
    server = serve(identity=other_ca.software_identity("localhost"))
    refusing = serve(identity=_trusting(ca.software_identity("localhost"), other_ca))
    with connected(tpm_device, tpm) as client:
        with pytest.raises(Exception, match="its issuer is not among the trust anchors"):
            client.get(server.url())
        with pytest.raises(HandshakeError, match="does not trust the CA that issued it"):
            client.get(refusing.url())
    assert (server.connections, refusing.connections) == (1, 1)


def test_the_authorization_value_is_used(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer) -> None:
    key = make_key(tpm, tmp_path, handle=HANDLE, authorization="open sesame")
    identity = ca.identity(key.reference, key.public_key, "device-1")
    with connected(identity, tpm, Secret(b"open sesame")) as client:
        assert client.get(serve().url()).json()["device"] == "device-1"
    with pytest.raises(AuthorizationError):
        connect(identity, tcti=tpm.tcti, authorization=Secret(b"shut"))


def test_the_key_of_another_tpm_is_refused(
    ca: TestCa, tpm: SimulatedTpm, make_tpm: Callable[[], SimulatedTpm], tmp_path: Path
) -> None:
    key = make_key(tpm, tmp_path)
    other = make_tpm()
    (tmp_path / "other").mkdir()
    make_key(other, tmp_path / "other")
    with pytest.raises(ForeignKeyError, match="belongs to another TPM"):
        connect(ca.identity(key.reference, key.public_key, "device-1"), tcti=other.tcti)


def _stop(tpm: SimulatedTpm, stops: list[bool]) -> None:
    if stops.pop(0):
        tpm.stop()


def _trusting(identity: Identity, ca: TestCa) -> Identity:
    from dataclasses import replace

    return replace(identity, trust=ca.trust)
