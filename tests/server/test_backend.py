"""What the backend answers, over real connections."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.device_ca import DAY, DeviceCa, leaf, serial
from support.https import HttpsClient, device_context, tls_socket
from tpm_mtls_server.database import Database
from tpm_mtls_server.settings import Limits
from tpm_mtls_server.telemetry import TelemetryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.backend import BackendThread
    from support.clock import Clock
    from tpm_mtls.identity import Identity

    Connect = Callable[[int, Identity], HttpsClient]
    Logged = Callable[[str], list[dict[str, Any]]]


def test_whoami_says_who_the_server_saw(backend: BackendThread, device: Identity, connect: Connect) -> None:
    answer = connect(backend.port, device).get("/whoami")
    assert answer.status == 200
    assert answer.body == {
        "device": "sensor-17",
        "serial": f"{serial(device):040x}",
        "not_after": f"{leaf(device).not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "tls_version": "TLSv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "session_resumed": False,
    }
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "aiohttp" not in str(answer.headers)


def test_one_log_line_per_request_and_no_query(
    backend: BackendThread, device: Identity, connect: Connect, logged: Logged
) -> None:
    connect(backend.port, device).get("/whoami?token=geheim")
    (line,) = logged("request")
    assert line.pop("ms") >= 0
    assert line == {
        "device": "sensor-17",
        "serial": f"{serial(device):040x}",
        "method": "GET",
        "path": "/whoami",
        "status": 200,
        "reason": None,
    }


def test_telemetry_is_stored_with_device_and_time(
    backend: BackendThread, device: Identity, connect: Connect, tmp_path: Path, clock: Clock
) -> None:
    before = clock()
    client = connect(backend.port, device)
    assert client.post("/telemetry", b'{ "temperature": 21.5 }').body == {"id": 1}
    answer = client.post("/telemetry", b'{"temperature":22}', Content_Type="application/json; charset=UTF-8")
    assert (answer.status, answer.body) == (201, {"id": 2})
    database = Database(f"sqlite:///{tmp_path}/telemetry.db")
    store = TelemetryStore(database)
    messages = store.messages("sensor-17")
    database.close()
    assert [(message.number, message.text) for message in messages] == [
        (1, '{"temperature":21.5}'),
        (2, '{"temperature":22}'),
    ]
    assert before <= messages[0].received <= messages[1].received <= clock()


@pytest.mark.parametrize(
    ("body", "headers", "status", "error"),
    [
        (b'{"a":', {}, 400, "not JSON"),
        (b"[1]", {}, 400, "not a JSON object"),
        (b"", {}, 400, "not JSON"),
        (b'{"a":' * 20_000, {}, 413, "larger than 65536 bytes"),
        (b'{"a":' + b"[" * 60_000, {}, 400, "nested too deeply"),
        (b"{}", {"Content_Type": "text/plain"}, 415, "expected application/json in UTF-8"),
        (b"{}", {"Content_Type": "application/json; charset=latin1"}, 415, "expected application/json in UTF-8"),
        (b"{}", {"Content_Encoding": "gzip"}, 415, "expected no content coding"),
        (b"{}", {"Expect": "a miracle"}, 417, "expectation failed"),
    ],
    ids=["cut off", "array", "empty", "large", "deep", "media type", "charset", "coding", "expectation"],
)
def test_a_bad_body_is_refused_and_not_repeated(
    backend: BackendThread,
    device: Identity,
    connect: Connect,
    body: bytes,
    headers: dict[str, str],
    status: int,
    error: str,
) -> None:
    answer = connect(backend.port, device).post("/telemetry", body, **headers)
    assert (answer.status, answer.body) == (status, {"error": error})


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/", 404, "not found"),
        ("GET", "/whoami/", 404, "not found"),
        ("GET", "/telemetry", 405, "method not allowed"),
        ("DELETE", "/whoami", 405, "method not allowed"),
    ],
)
def test_an_unknown_path_or_method_keeps_the_connection(
    backend: BackendThread, device: Identity, connect: Connect, method: str, path: str, status: int, error: str
) -> None:
    client = connect(backend.port, device)
    answer = client.request(method, path)
    assert (answer.status, answer.body) == (status, {"error": error})
    if status == 405:
        assert answer.headers["Allow"] in {"GET", "POST"}
    assert client.get("/whoami").status == 200


def test_a_chunked_body_has_the_same_limit(backend: BackendThread, device: Identity) -> None:
    head = (
        b"POST /telemetry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(head + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 5)
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(head + b"2\r\n{}\r\n0\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 201 ")
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(head + b"zz\r\n{}\r\n0\r\n\r\n")
        assert sock.recv(4096).endswith(b'{"error":"bad request"}')


def test_a_client_that_waits_for_100_continue_gets_it(backend: BackendThread, device: Identity) -> None:
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(
            b"POST /telemetry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert sock.recv(4096).startswith(b"HTTP/1.1 201 ")


def test_what_is_not_http_gets_a_short_answer_and_is_not_logged(
    backend: BackendThread, device: Identity, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(b"geheim geheim geheim\r\n\r\n")
        answer = sock.recv(4096)
        assert sock.recv(4096) == b""
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert answer.endswith(b'{"error":"bad request"}')
    assert len(logged("malformed request")) == 1
    assert "geheim" not in caplog.text


def test_a_head_that_is_too_large_is_refused(backend: BackendThread, device: Identity) -> None:
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(b"GET /whoami HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + b"\r\n\r\n")
        assert b'{"error":"bad request"}' in sock.recv(4096)


def test_a_failure_of_the_program_is_logged_and_not_shown(
    backend: BackendThread,
    device: Identity,
    connect: Connect,
    logged: Logged,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = backend.service._endpoints.backend._routes.find("/healthz")
    assert found is not None
    monkeypatch.setattr(found.methods["GET"].handler.__self__, "_own_expiry", None)  # type: ignore[attr-defined]  # it is a method
    answer = connect(backend.port, device).get("/healthz")
    assert (answer.status, answer.body) == (500, {"error": "internal error"})
    assert len(logged("internal error")) == 1
    assert "TypeError" in caplog.text
    assert connect(backend.port, device).get("/whoami").status == 200


def test_sixteen_devices_at_once(backend: BackendThread, ca: DeviceCa) -> None:
    devices = [ca.device(f"sensor-{number}") for number in range(16)]

    def work(device: Identity) -> list[object]:
        client = HttpsClient(backend.port, device)
        try:
            names = [client.get("/whoami").body["device"] for _ in range(5)]
            stored = [client.post("/telemetry", b"{}").status for _ in range(5)]
        finally:
            client.close()
        return [*names, *stored]

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(work, devices))
    assert results == [[f"sensor-{number}"] * 5 + [201] * 5 for number in range(16)]


# who may


def test_a_certificate_without_usage_is_refused_by_name(backend: BackendThread, ca: DeviceCa, connect: Connect) -> None:
    """OpenSSL lets a certificate without extendedKeyUsage pass; the backend does not."""
    client = connect(backend.port, ca.device(usages=None))
    answer = client.get("/whoami")
    assert (answer.status, answer.body) == (403, {"error": "the certificate is not for TLS clients"})
    assert answer.headers["Connection"] == "close"
    both = ca.device(usages=[ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    assert connect(backend.port, both).get("/whoami").status == 200


def test_a_certificate_that_expires_on_a_kept_connection_is_refused(
    backend: BackendThread, device: Identity, connect: Connect, clock: Clock
) -> None:
    client = connect(backend.port, device)
    assert client.get("/whoami").status == 200
    clock.offset = 91 * DAY
    answer = client.get("/whoami")
    assert (answer.status, answer.body) == (403, {"error": "certificate expired"})
    assert answer.headers["Connection"] == "close"
    clock.offset = -2 * DAY
    assert connect(backend.port, device).get("/whoami").body == {"error": "certificate not yet valid"}


# revocation


def test_revocation_ends_a_kept_connection(
    backend: BackendThread, device: Identity, connect: Connect, ca: DeviceCa, logged: Logged
) -> None:
    client, other = connect(backend.port, device), connect(backend.port, ca.device("sensor-18"))
    assert client.get("/whoami").status == 200
    ca.publish_crl(serial(device))
    answer = client.get("/whoami")
    assert (answer.status, answer.body) == (403, {"error": "certificate revoked"})
    assert answer.headers["Connection"] == "close"
    assert logged("request")[-1]["reason"] == "certificate revoked"
    assert connect(backend.port, device).get("/healthz").status == 403
    assert other.get("/whoami").status == 200
    ca.publish_crl()
    assert connect(backend.port, device).get("/whoami").status == 200


@pytest.mark.parametrize("fault", ["missing", "damaged", "stale", "wrong signer", "folder"])
def test_without_a_usable_crl_only_healthz_answers(
    backend: BackendThread, device: Identity, connect: Connect, ca: DeviceCa, tmp_path: Path, clock: Clock, fault: str
) -> None:
    client = connect(backend.port, device)
    assert client.get("/healthz").body["crl"] == "fresh"
    good = ca.crl_file.read_bytes()
    if fault == "stale":
        clock.offset = 2 * DAY
    else:
        ca.crl_file.unlink()
    if fault == "damaged":
        ca.crl_file.write_bytes(good[:200])
    elif fault == "wrong signer":
        ca.crl_file.write_bytes(DeviceCa(tmp_path / "other").crl())
    elif fault == "folder":
        ca.crl_file.mkdir()
    expected = {
        "missing": "the CRL file cannot be read",
        "damaged": "the CRL is damaged",
        "stale": f"the CRL is stale: the next one was due at {clock() - DAY:%Y-%m-%d}",
        "wrong signer": "the CRL's signature is wrong",
        "folder": "the CRL file cannot be read",
    }[fault]
    answer = client.get("/whoami")
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "60"
    assert answer.body["error"].startswith(f"revocation status unknown: {expected}")
    health = client.get("/healthz")
    assert health.status == 503
    assert health.body["ok"] is False
    assert health.body["crl"].startswith(expected)
    if fault == "folder":
        ca.crl_file.rmdir()
    clock.offset = timedelta()
    ca.publish_crl()
    assert client.get("/whoami").status == 200


def test_a_server_that_starts_without_a_crl_says_so_and_recovers(
    make_backend: Callable[..., BackendThread], device: Identity, connect: Connect, ca: DeviceCa, logged: Logged
) -> None:
    ca.crl_file.unlink()
    backend = make_backend()
    assert logged("no usable CRL: requests are refused until there is one")
    client = connect(backend.port, device)
    assert client.get("/whoami").status == 503
    ca.publish_crl()
    assert client.get("/whoami").status == 200


def test_a_certificate_of_a_ca_without_crl_is_refused(
    make_backend: Callable[..., BackendThread], ca: DeviceCa, tmp_path: Path, connect: Connect
) -> None:
    second = DeviceCa(tmp_path / "second")
    both = tmp_path / "both.pem"
    both.write_bytes(ca.trust.read_bytes() + second.trust.read_bytes())
    server = ca.server()
    backend = make_backend(identity=type(server)(server.key, server.certificate, both))
    stranger = second.device()
    client = connect(backend.port, type(stranger)(stranger.key, stranger.certificate, ca.trust))
    answer = client.get("/whoami")
    assert answer.status == 503
    assert answer.body["error"].endswith("no CRL of the certificate's CA is there")


def test_after_the_refusal_the_server_closes_the_connection(
    backend: BackendThread, device: Identity, ca: DeviceCa
) -> None:
    with tls_socket(backend.port, device_context(device)) as sock:
        ca.publish_crl(serial(device))
        sock.sendall(b"GET /whoami HTTP/1.1\r\nHost: x\r\n\r\nGET /whoami HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answers.count(b"HTTP/1.1 403 ") == 1
    assert answers.endswith(b'{"error":"certificate revoked"}')


def test_without_the_option_revocation_is_not_checked_and_the_log_says_so(
    make_backend: Callable[..., BackendThread], device: Identity, connect: Connect, ca: DeviceCa, logged: Logged
) -> None:
    backend = make_backend(crl=None)
    ca.publish_crl(serial(device))
    assert logged("no CRL: revoked certificates are accepted until they expire")
    client = connect(backend.port, device)
    assert client.get("/whoami").status == 200
    assert client.get("/healthz").body["crl"] == "not configured"


# health


def test_healthz_tells_the_own_certificates_days(
    backend: BackendThread, connect: Connect, ca: DeviceCa, clock: Clock
) -> None:
    client = connect(backend.port, ca.device(ends=clock() + 1000 * DAY))
    answer = client.get("/healthz")
    assert answer.status == 200
    assert answer.body == {"ok": True, "store": "reachable", "crl": "fresh", "certificate_days_left": 89}
    clock.offset = 91 * DAY
    ca.crl_file.write_bytes(ca.crl(next_update=clock() + DAY))
    answer = client.get("/healthz")
    assert answer.status == 503
    assert answer.body["certificate_days_left"] == -2


def test_a_broken_store_is_reported_without_its_path(
    backend: BackendThread, device: Identity, connect: Connect, tmp_path: Path, logged: Logged
) -> None:
    client = connect(backend.port, device)
    assert client.post("/telemetry", b"{}").status == 201
    backend.call(backend.service._endpoints._database.close)
    for file in tmp_path.glob("telemetry.db*"):
        file.unlink()
    (tmp_path / "telemetry.db").write_bytes(b"no database " * 100)
    answer = client.post("/telemetry", b"{}")
    assert (answer.status, answer.body) == (503, {"error": "the store is not available"})
    assert answer.headers["Retry-After"] == "60"
    health = client.get("/healthz")
    assert (health.status, health.body["store"]) == (503, "unreachable")
    assert "file is not a database" in logged("storage error")[0]["error"]
    assert str(tmp_path) not in json.dumps([answer.body, health.body])


# slow clients


def test_a_slow_head_ends_the_connection(make_backend: Callable[..., BackendThread], device: Identity) -> None:
    backend = make_backend(limits=Limits(idle=0.3))
    with tls_socket(backend.port, device_context(device)) as sock:
        begun = time.monotonic()
        sock.sendall(b"GET /whoami HTTP/1.1\r\nHost: x\r\n")
        time.sleep(0.2)
        with contextlib.suppress(OSError):  # it may be cut off already
            sock.sendall(b"X: dribbling does not prolong it\r\n")
            assert sock.recv(1) == b""
        assert 0.2 < time.monotonic() - begun < 5


def test_a_slow_body_gets_408(make_backend: Callable[..., BackendThread], device: Identity) -> None:
    backend = make_backend(limits=Limits(body=0.2))
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(
            b"POST /telemetry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert sock.recv(4096) == b""


def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(
    backend: BackendThread, device: Identity, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(
            b"POST /telemetry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
        )
    assert connect(backend.port, device).get("/whoami").status == 200
    assert "internal error" not in caplog.text


# the end


def test_a_client_that_keeps_its_request_open_delays_the_end_only_so_long(
    make_backend: Callable[..., BackendThread], device: Identity
) -> None:
    backend = make_backend(limits=Limits(drain=0.3))
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(
            b"POST /telemetry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
        begun = time.monotonic()
        backend.stop()
        assert 0.2 < time.monotonic() - begun < 5
        assert sock.recv(4096) == b""
