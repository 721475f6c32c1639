"""``tpm-mtls server run`` as a process: signals, TPM keys, and what outside programs see of it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from support.backend import running_backend
from support.device_ca import DeviceCa, serial
from support.https import HttpsClient, device_context, tls_socket
from support.tpm_keys import make_key
from tpm_mtls.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.backend import BackendProcess
    from support.tpm import SimulatedTpm


@pytest.fixture
def running(ca: DeviceCa, tmp_path: Path) -> Iterator[BackendProcess]:
    with running_backend(tmp_path, ca.server(), crl=ca.crl_file) as backend:
        yield backend


def curl(backend: BackendProcess, device: Identity, path: str, *options: str) -> subprocess.CompletedProcess[str]:
    credentials = ["--cert", str(device.certificate), "--key", str(device.key)]
    return curl_without_certificate(backend, device.trust, path, *credentials, *options)


def curl_without_certificate(
    backend: BackendProcess, trust: Path, path: str, *options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "-sS", "--max-time", "20", "--cacert", str(trust), *options, backend.url + path],
        capture_output=True,
        text=True,
        check=False,
    )


def s_client(
    backend: BackendProcess, device: Identity, *options: str, path: str = "/whoami"
) -> subprocess.CompletedProcess[str]:
    """OpenSSL's own client; its output has the handshake's facts, then the answer."""
    credentials = ["-CAfile", device.trust, "-cert", device.certificate, "-key", str(device.key)]
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{backend.port}", *map(str, credentials), "-ign_eof", *options],
        input=f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


def body(told: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object in what s_client printed."""
    (line,) = [line for line in told.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.JSONDecoder().raw_decode(line)[0]
    return found


# outside programs


def test_curl_is_recognised(running: BackendProcess, device: Identity) -> None:
    assert json.loads(curl(running, device, "/whoami").stdout)["device"] == "sensor-17"
    stored = curl(running, device, "/telemetry", "--json", '{"t":1}', "-w", "%{http_code}")
    assert stored.stdout == '{"id":1}201'
    large = curl(running, device, "/telemetry", "--json", json.dumps("x" * 70_000), "-w", "%{http_code}")
    assert large.stdout == '{"error":"larger than 65536 bytes"}413'
    assert "certificate required" in curl_without_certificate(running, device.trust, "/whoami").stderr


def test_openssl_sees_tls_1_3_only(running: BackendProcess, device: Identity) -> None:
    told = s_client(running, device, "-verify_return_error", "-verify_hostname", "localhost")
    assert "Verification: OK" in told.stdout
    assert re.search("(Server|Peer) Temp Key: X25519", told.stdout)  # 3.5 adds MLKEM768 and calls it the peer's
    assert body(told)["tls_version"] == "TLSv1.3"
    assert "alert protocol version" in s_client(running, device, "-tls1_2").stderr
    assert "handshake failure" in s_client(running, device, "-groups", "P-521").stderr


def test_tls_1_2_on_request_only_with_forward_secrecy(ca: DeviceCa, device: Identity, tmp_path: Path) -> None:
    with running_backend(tmp_path, ca.server(), "--tls12", crl=ca.crl_file) as backend:
        told = body(s_client(backend, device, "-tls1_2"))
        assert told["tls_version"] == "TLSv1.2"
        assert told["cipher"].startswith("ECDHE-ECDSA-AES")
        assert "handshake failure" in s_client(backend, device, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA").stderr
        assert "protocol version" in s_client(backend, device, "-tls1_1", "-cipher", "ALL@SECLEVEL=0").stderr
        assert body(s_client(backend, device))["tls_version"] == "TLSv1.3"


@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
def test_a_resumed_session_still_says_who_and_can_be_revoked(
    ca: DeviceCa, device: Identity, tmp_path: Path, version: str
) -> None:
    """The session carries the client's certificate; revocation looks at it again at every request."""
    session = str(tmp_path / "session.pem")
    with running_backend(tmp_path, ca.server(), "--tls12", crl=ca.crl_file) as backend:
        first = body(s_client(backend, device, version, "-sess_out", session))
        resumed = body(s_client(backend, device, version, "-sess_in", session))
        assert resumed == first | {"session_resumed": True}
        ca.publish_crl(serial(device))
        refused = s_client(backend, device, version, "-sess_in", session)
        assert body(refused) == {"error": "certificate revoked"}
        assert "Reused, TLSv1" in refused.stdout
        log = backend.log("request")[-1]
        assert (log["device"], log["status"]) == ("sensor-17", 403)


def test_sixteen_clients_of_urllib3(running: BackendProcess, ca: DeviceCa) -> None:
    def work(number: int) -> set[object]:
        context = device_context(ca.device(f"sensor-{number}"))
        with urllib3.PoolManager(ssl_context=context, retries=False, timeout=20) as pool:
            return {pool.request("GET", f"{running.url}/whoami").json()["device"] for _ in range(10)}

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(work, range(16))) == [{f"sensor-{number}"} for number in range(16)]
    assert {line["status"] for line in running.log("request")} == {200}


# keys in a TPM


@pytest.mark.parametrize("handle", [None, 0x81000100], ids=["TSS2 PEM", "handle"])
def test_the_servers_own_key_may_be_in_a_tpm(
    ca: DeviceCa, device: Identity, tmp_path: Path, tpm: SimulatedTpm, handle: int | None
) -> None:
    key = make_key(tpm, tmp_path, handle=handle)
    identity = Identity(key.reference, ca.chain(ca.certify_server(key.public_key), "tpm-server"), ca.trust)
    with running_backend(tmp_path, identity, crl=ca.crl_file, tcti=tpm.tcti) as backend:
        assert json.loads(curl(backend, device, "/whoami").stdout)["device"] == "sensor-17"
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: body(s_client(backend, device)), range(8)))
        assert {answer["device"] for answer in answers} == {"sensor-17"}
        assert backend.stop() == 0


def test_a_restarted_tpm_costs_one_handshake_and_the_log_says_why(
    ca: DeviceCa, device: Identity, tmp_path: Path, tpm: SimulatedTpm
) -> None:
    key = make_key(tpm, tmp_path)
    identity = Identity(key.reference, ca.chain(ca.certify_server(key.public_key), "tpm-server"), ca.trust)
    with running_backend(tmp_path, identity, crl=ca.crl_file, tcti=tpm.tcti) as backend:
        kept = HttpsClient(backend.port, device)
        assert kept.get("/whoami").status == 200
        tpm.restart()
        assert "internal error" in curl(backend, device, "/whoami").stderr
        (line,) = backend.log("handshake refused")
        assert "no longer in the TPM" in line["cause"]
        assert curl(backend, device, "/healthz", "-w", "%{http_code}").stdout.endswith("200")
        assert kept.get("/whoami").status == 200
        kept.close()
        assert backend.stop() == 0


# signals


def replace_certificate(ca: DeviceCa, server: Identity) -> int:
    """Puts a new certificate with a new key in the server's place; returns its serial number."""
    renewed = ca.server("renewed")
    shutil.copy(str(renewed.key), str(server.key))
    shutil.copy(renewed.certificate, server.certificate)
    return serial(renewed)


def server_serial(port: int, device: Identity) -> int:
    context = device_context(device)
    context.check_hostname = False
    with tls_socket(port, context) as sock:
        certificate = sock.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def test_sighup_changes_the_certificate_under_load_without_losing_a_request(
    ca: DeviceCa, device: Identity, tmp_path: Path
) -> None:
    server = ca.server()
    stop = threading.Event()

    with running_backend(tmp_path, server, crl=ca.crl_file) as backend:

        def load(*, kept: bool) -> list[int]:
            context, statuses = device_context(device), []
            context.check_hostname = False
            client = HttpsClient(backend.port, device, context=context)
            while not stop.is_set():
                statuses.append(client.get("/whoami").status)
                if not kept:
                    client.close()
                    client = HttpsClient(backend.port, device, context=context)
            client.close()
            return statuses

        with ThreadPoolExecutor(4) as threads:
            loads = [threads.submit(load, kept=number < 2) for number in range(4)]
            try:
                serials = [serial(server)]
                for number in range(1, 4):
                    serials.append(replace_certificate(ca, server))
                    backend.signal(signal.SIGHUP)
                    wait_for(backend, "reloaded", number)
                    assert server_serial(backend.port, device) == serials[-1]
                    time.sleep(0.1)
            finally:
                stop.set()
            results = [load.result() for load in loads]
        assert len(set(serials)) == 4
        assert all(statuses and set(statuses) == {200} for statuses in results)


def wait_for(backend: BackendProcess, event: str, times: int = 1) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 20
    while len(backend.log(event)) < times and time.monotonic() < deadline:
        time.sleep(0.01)
    return backend.log(event)


def test_without_a_signal_the_next_handshake_shows_the_new_certificate(
    ca: DeviceCa, device: Identity, tmp_path: Path
) -> None:
    server = ca.server()
    with running_backend(tmp_path, server, crl=ca.crl_file) as backend:
        client = HttpsClient(backend.port, device)
        before = serial(server)
        assert client.get("/whoami").status == 200
        after = replace_certificate(ca, server)
        assert server_serial(backend.port, device) == after != before
        assert client.get("/whoami").status == 200  # the connection that was there
        client.close()


@pytest.mark.parametrize("fault", ["other key", "missing", "garbage"])
def test_a_failed_reload_keeps_the_old_certificate_and_says_why(
    ca: DeviceCa, device: Identity, tmp_path: Path, fault: str
) -> None:
    server = ca.server()
    before = serial(server)
    with running_backend(tmp_path, server, crl=ca.crl_file) as backend:
        if fault == "other key":
            shutil.copy(ca.server("other").certificate, server.certificate)
        elif fault == "missing":
            server.certificate.unlink()
        else:
            server.certificate.write_text("garbage")
        backend.signal(signal.SIGHUP)
        (line,) = wait_for(backend, "reload failed")
        assert line["error"]
        assert line["hint"]
        assert server_serial(backend.port, device) == before
        days = json.loads(curl(backend, device, "/healthz").stdout)["certificate_days_left"]
        assert days == 89


def test_sigterm_finishes_what_runs_and_closes_what_is_idle(running: BackendProcess, device: Identity) -> None:
    idle = tls_socket(running.port, device_context(device))
    idle.sendall(b"GET /whoami HTTP/1.1\r\nHost: x\r\n\r\n")
    assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
    busy = tls_socket(running.port, device_context(device))
    head = b"POST /telemetry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n"
    busy.sendall(head + b"Expect: 100-continue\r\n\r\n")
    assert busy.recv(4096).startswith(b"HTTP/1.1 100 "), "the server has begun to read the body"
    busy.sendall(b'{"a":')
    untouched = tls_socket(running.port, device_context(device))
    unfinished = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    running.signal(signal.SIGTERM)
    with idle, busy, untouched, unfinished:
        assert idle.recv(1) == b""
        assert untouched.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port), timeout=1).close()
        assert running.process.poll() is None
        busy.sendall(b"1234}")
        assert busy.recv(4096).endswith(b'{"id":1}')
    assert running.process.wait(20) == 0
    assert [line["event"] for line in running.log()][-3:] == ["stopping", "request", "stopped"], running.log_text()
    assert all(line.startswith("{") for line in running.log_text().splitlines()), running.log_text()


def test_sigint_ends_it_too(running: BackendProcess) -> None:
    running.signal(signal.SIGINT)
    assert running.process.wait(20) == 0


def test_stderr_is_json_and_has_nothing_of_the_body(running: BackendProcess, device: Identity) -> None:
    curl(running, device, "/telemetry?q=geheim1", "--json", '{"password":"geheim2"', "-H", "X-Secret: geheim3")
    with tls_socket(running.port, device_context(device)) as sock:
        sock.sendall(b"GET /whoami HTTP/1.1\r\nbad header geheim4\r\n\r\n")
        assert b"geheim" not in sock.recv(4096)
    assert running.log("request")[0]["path"] == "/telemetry"
    assert len(running.log("malformed request")) == 1
    assert "geheim" not in running.log_text()
