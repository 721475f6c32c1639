"""TLS below HTTP: a refused client learns why, and every wait has an end."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from support.device_ca import DAY, DeviceCa
from support.https import device_context, tls_socket
from tpm_mtls.tls.transport import TlsTimeouts
from tpm_mtls_server.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.backend import BackendThread
    from support.clock import Clock
    from support.https import HttpsClient
    from tpm_mtls.identity import Identity


# refused handshakes: the client learns why


def alert(port: int, context: ssl.SSLContext) -> str:
    """What a client is told; in TLS 1.3 it learns it when it reads."""
    with pytest.raises(ssl.SSLError) as caught, tls_socket(port, context) as sock:  # noqa: PT012 - one of the two raises
        sock.sendall(b"GET /whoami HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 100_000)
        sock.recv(1)
    return str(caught.value.reason)


def test_without_a_certificate(
    backend: BackendThread, device: Identity, logged: Callable[[str], list[dict[str, Any]]]
) -> None:
    assert alert(backend.port, device_context(None, trust=device)) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    (line,) = logged("handshake refused")
    assert line == {"remote": "127.0.0.1", "reason": "PEER_DID_NOT_RETURN_A_CERTIFICATE", "cause": None}


def test_with_a_certificate_of_another_ca(backend: BackendThread, device: Identity, tmp_path: Path) -> None:
    stranger = DeviceCa(tmp_path / "other", name="Other").device()
    assert alert(backend.port, device_context(stranger, trust=device)) == "TLSV1_ALERT_UNKNOWN_CA"


def test_with_a_forged_certificate_of_our_ca(backend: BackendThread, device: Identity, tmp_path: Path) -> None:
    forged = DeviceCa(tmp_path / "other").device()  # the same CA name, another key
    assert alert(backend.port, device_context(forged, trust=device)) in {
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_DECRYPT_ERROR",
    }


def test_with_an_expired_certificate(backend: BackendThread, ca: DeviceCa, clock: Clock) -> None:
    expired = ca.device(begins=clock() - 3 * DAY, ends=clock() - DAY)
    assert alert(backend.port, device_context(expired)) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
    unborn = ca.device(begins=clock() + DAY, ends=clock() + 3 * DAY)
    assert alert(backend.port, device_context(unborn)) == "SSLV3_ALERT_BAD_CERTIFICATE"


def test_with_a_server_certificate(backend: BackendThread, ca: DeviceCa) -> None:
    assert alert(backend.port, device_context(ca.server())) == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"


def test_with_tls_1_2(backend: BackendThread, device: Identity) -> None:
    context = device_context(device)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert alert(backend.port, context) == "TLSV1_ALERT_PROTOCOL_VERSION"


def test_without_tls(backend: BackendThread, logged: Callable[[str], list[dict[str, Any]]]) -> None:
    with socket.create_connection(("127.0.0.1", backend.port), timeout=10) as sock:
        sock.sendall(b"GET /whoami HTTP/1.1\r\nHost: x\r\n\r\n")
        while sock.recv(100):
            pass
    assert logged("handshake refused")[0]["reason"] == "HTTP_REQUEST"


# time limits


def test_a_slow_handshake_ends(
    make_backend: Callable[..., BackendThread], logged: Callable[[str], list[dict[str, Any]]]
) -> None:
    backend = make_backend(limits=Limits(tls=TlsTimeouts(handshake=0.2)))
    with socket.create_connection(("127.0.0.1", backend.port), timeout=10) as sock:
        sock.sendall(b"\x16\x03\x01")
        assert end_of(sock)
    assert logged("handshake refused") == [{"remote": "127.0.0.1", "reason": "timed out", "cause": None}]


def end_of(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_peer_that_never_closes_its_side_is_cut_off(
    make_backend: Callable[..., BackendThread], device: Identity
) -> None:
    backend = make_backend(limits=Limits(idle=0.1, tls=TlsTimeouts(close=0.2)))
    with tls_socket(backend.port, device_context(device)) as sock:
        assert sock.recv(1) == b""  # close_notify
        deadline = time.monotonic() + 10
        with socket.socket(fileno=socket.dup(sock.fileno())) as raw:
            while time.monotonic() < deadline and not reset(raw):
                time.sleep(0.05)
        assert time.monotonic() < deadline


def reset(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"x")
    except ConnectionError:
        return True
    return False


def test_a_peer_that_leaves_during_the_handshake_frees_its_place(
    make_backend: Callable[..., BackendThread], device: Identity, connect: Callable[[int, Identity], HttpsClient]
) -> None:
    backend = make_backend(limits=Limits(connections=1))
    for abruptly in (False, True):
        sock = socket.create_connection(("127.0.0.1", backend.port), timeout=10)
        sock.sendall(b"\x16\x03\x01")
        if abruptly:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert connect(backend.port, device).get("/whoami").status == 200


def test_one_more_connection_than_allowed_waits_for_a_place(
    make_backend: Callable[..., BackendThread],
    device: Identity,
    connect: Callable[[int, Identity], HttpsClient],
    logged: Callable[[str], list[dict[str, Any]]],
) -> None:
    backend = make_backend(limits=Limits(connections=2))
    first, second = connect(backend.port, device), connect(backend.port, device)
    assert [first.get("/whoami").status, second.get("/whoami").status] == [200, 200]
    with ThreadPoolExecutor(1) as threads:
        third = threads.submit(lambda: connect(backend.port, device).get("/whoami").status)
        time.sleep(0.2)
        assert not third.done()
        first.close()
        assert third.result(10) == 200
    assert logged("connection limit reached")[0] == {"connections": 2}
