"""What a developer's program does with the client, and what it must not be able to do by mistake."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import tpm_mtls_client
from support.https_server import fixed, http
from tpm_mtls.errors import (
    CertificateMismatchError,
    PeerUnreachableError,
    RequestRefusedError,
    ResponseError,
    UsageError,
)
from tpm_mtls_client import Timeout, connect

if TYPE_CHECKING:
    from pathlib import Path

    from support.certificates import TestCa
    from support.https_server import MakeServer
    from tpm_mtls.identity import Identity
    from tpm_mtls_client import Client


def test_the_package_promises_these_names_and_no_others() -> None:
    assert tpm_mtls_client.__all__ == ["Client", "Response", "Timeout", "connect"]
    for name in tpm_mtls_client.__all__:
        assert getattr(tpm_mtls_client, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Pools'"):
        _ = tpm_mtls_client.Pools


def test_the_server_sees_the_devices_certificate(client: Client, serve: MakeServer) -> None:
    server = serve()
    response = client.get(server.url("/whoami?detail=1"))
    assert response.status == 200
    assert response.headers["content-type"] == response.headers["Content-Type"] == "application/json"
    assert response.json()["device"] == "device-1"
    assert response.json()["request"] == "GET /whoami?detail=1 HTTP/1.1"
    assert response.url == server.url("/whoami")
    assert response.raise_for_status() is response


def test_an_ip_address_is_verified_as_one(client: Client, serve: MakeServer) -> None:
    assert client.get(serve().url(host="127.0.0.1")).status == 200


def test_paths_are_relative_to_the_base_url(device: Identity, serve: MakeServer) -> None:
    server = serve()
    with connect(device, base_url=server.url("/api/")) as client:
        assert client.get("/whoami").json()["request"] == "GET /api/whoami HTTP/1.1"
        assert client.get(server.url("/elsewhere")).json()["request"] == "GET /elsewhere HTTP/1.1"


def test_a_path_without_a_base_url_is_refused(client: Client) -> None:
    with pytest.raises(UsageError, match="not an https URL"):
        client.get("/whoami")


def test_a_base_url_without_tls_is_refused(device: Identity) -> None:
    with pytest.raises(UsageError, match="not an https URL: 'http://localhost'"):
        connect(device, base_url="http://localhost")


def test_post_sends_json_or_bytes(client: Client, serve: MakeServer) -> None:
    server = serve()
    assert client.post(server.url(), json={"temperature": 21.5}).json()["body"] == '{"temperature": 21.5}'
    assert (
        client.post(server.url(), body=b"as it is", headers={"Content-Type": "text/plain"}).json()["body"] == "as it is"
    )
    assert [request.headers["content-type"] for request in server.requests] == ["application/json", "text/plain"]
    with pytest.raises(UsageError, match="one body"):
        client.post(server.url(), json=1, body=b"1")


def test_any_method_with_header_fields(client: Client, serve: MakeServer) -> None:
    server = serve()
    client.request("put", server.url(), body=b"x", headers={"X-Device": "one", "User-Agent": "mine/1"})
    (request,) = server.requests
    assert request.line == "PUT / HTTP/1.1"
    assert (request.headers["x-device"], request.headers["user-agent"]) == ("one", "mine/1")
    assert request.headers["accept-encoding"] == "identity"


def test_a_connection_is_kept_and_used_again(client: Client, serve: MakeServer) -> None:
    server = serve()
    ports = {client.get(server.url()).json()["port"] for _ in range(3)}
    assert len(ports) == server.handshakes == 1


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(client: Client, serve: MakeServer) -> None:
    server = serve()
    first = client.get(server.url()).json()["port"]
    server.drop_connections()
    assert client.get(server.url()).json()["port"] != first
    assert server.handshakes == 2


def test_redirects_are_not_followed(client: Client, serve: MakeServer) -> None:
    server = serve(fixed(http(302, extra="Location: https://localhost:1/elsewhere\r\n")))
    response = client.get(server.url())
    assert (response.status, response.headers["location"]) == (302, "https://localhost:1/elsewhere")
    with pytest.raises(RequestRefusedError, match="answers 302: go to https://localhost:1/elsewhere") as caught:
        response.raise_for_status()
    assert "not followed" in caught.value.hint
    assert len(server.requests) == 1


def test_proxies_of_the_environment_are_not_used(
    client: Client, serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert client.get(serve().url()).status == 200


def test_an_error_status_is_an_answer_until_asked(client: Client, serve: MakeServer) -> None:
    response = client.get(serve(fixed(http(403, b'{"error": "not your business"}'))).url("/secret?token=hush"))
    with pytest.raises(
        RequestRefusedError, match=r"https://localhost:\d+/secret answers 403: not your business\n"
    ) as caught:
        response.raise_for_status()
    assert caught.value.status == 403
    assert "revoked" in caught.value.hint


def test_the_server_s_own_advice_is_the_hint_in_one_short_line(client: Client, serve: MakeServer) -> None:
    def hint(body: bytes) -> str:
        with pytest.raises(RequestRefusedError, match="answers 403") as caught:
            client.get(serve(fixed(http(403, body))).url()).raise_for_status()
        return caught.value.hint

    assert hint(b'{"error": "not yet", "hint": "ask\\n\\u001b[31mBob"}') == "the server says: ask [31mBob"
    assert len(hint(b'{"error": "not yet", "hint": "' + b"x" * 1000 + b'"}')) < 400
    for other in (b'{"error": "not yet", "hint": ""}', b'{"hint": 7}', b'"hint"'):
        assert "revoked" in hint(other)


def test_a_long_explanation_with_control_characters_and_markup_becomes_one_short_line(
    client: Client, serve: MakeServer
) -> None:
    page = b"<html><body>\x1b[31mbroken\x07\r\n\xff\xe2\x80\xae" + b"very " * 5000 + b"</body></html>"
    response = client.get(serve(fixed(http(500, page, content_type="text/html"))).url())
    with pytest.raises(RequestRefusedError) as caught:
        response.raise_for_status()
    message = str(caught.value)
    assert "answers 500: [31mbroken \ufffd very very" in message
    assert message.isprintable()
    assert len(message) < 400
    assert message.endswith("…")


def test_an_error_without_a_word_is_one_too(client: Client, serve: MakeServer) -> None:
    with pytest.raises(RequestRefusedError, match=r"/ answers 418\n"):
        client.get(serve(fixed(http(418))).url()).raise_for_status()


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_body_that_is_no_json_is_said_to_be_none(client: Client, serve: MakeServer, body: bytes) -> None:
    response = client.get(serve(fixed(http(200, body))).url())
    with pytest.raises(ResponseError, match="is no JSON"):
        response.json()


def test_an_answer_may_be_as_large_as_allowed_and_not_one_byte_larger(device: Identity, serve: MakeServer) -> None:
    with connect(device, response_limit=1000) as client:
        assert len(client.get(serve(fixed(http(200, b"x" * 1000))).url()).body) == 1000
        with pytest.raises(ResponseError, match="larger than 1000 bytes"):
            client.get(serve(fixed(http(200, b"x" * 1001))).url())


def test_a_chunked_answer_is_capped_as_well(device: Identity, serve: MakeServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(device, response_limit=1000) as client:
        answer = client.get(serve(fixed(head + b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")).url())
        assert answer.body == b"x" * 1000
        with pytest.raises(ResponseError, match="larger than 1000 bytes"):
            client.get(serve(fixed(head + b"fff\r\n" + b"x" * 4095 + b"\r\n0\r\n\r\n")).url())


def test_a_client_can_be_used_again_after_an_error(client: Client, serve: MakeServer) -> None:
    server, broken = serve(), serve(fixed(b"nonsense\r\n\r\n", then_close=True))
    for _ in range(2):
        with pytest.raises(ResponseError, match="not proper HTTP"):
            client.get(broken.url())
        assert client.get(server.url()).status == 200


def test_32_threads_share_one_client(client: Client, serve: MakeServer) -> None:
    server = serve()
    barrier = threading.Barrier(32)

    def ask(number: int) -> list[str]:
        barrier.wait(10)
        return [client.post(server.url(), body=f"{number}/{turn}".encode()).json()["body"] for turn in range(10)]

    with ThreadPoolExecutor(32) as threads:
        for number, bodies in enumerate(threads.map(ask, range(32))):
            assert bodies == [f"{number}/{turn}" for turn in range(10)]
    assert len(server.requests) == 320
    assert server.handshakes <= 32


def test_connections_to_many_hosts_do_not_pile_up(client: Client, serve: MakeServer) -> None:
    servers = [serve() for _ in range(18)]
    for server in servers:
        client.get(server.url())
    client.get(servers[-1].url())
    assert servers[-1].handshakes == 1
    client.get(servers[0].url())
    assert servers[0].handshakes == 2


def test_a_closed_client_closes_its_connections_and_makes_no_new_ones(device: Identity, serve: MakeServer) -> None:
    server = serve()
    with connect(device) as client:
        client.get(server.url())
    with pytest.raises(UsageError, match="the client is closed"):
        client.get(server.url())
    assert server.handshakes == 1


def test_a_forked_child_leaves_its_parents_connections_alone(serve: MakeServer, device: Identity) -> None:
    """In a process of its own: this one has threads."""
    server = serve()
    program = """
import os, sys
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls_client import connect
key, certificate, trust, url = sys.argv[1:]
with connect(Identity(key=KeyFile(Path(key)), certificate=Path(certificate), trust=Path(trust))) as client:
    before = client.get(url).json()["port"]
    child = os.fork()
    here = client.get(url).json()["port"]
    if child == 0:
        os._exit(0 if here != before else 1)
    assert here == before
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    arguments = [str(device.key), str(device.certificate), str(device.trust), server.url()]
    subprocess.run([sys.executable, "-W", "error", "-c", program, *arguments], check=True, timeout=60)
    assert server.handshakes == 2


def test_the_context_serves_other_libraries(client: Client, serve: MakeServer) -> None:
    import urllib.request

    with urllib.request.urlopen(serve().url("/from/urllib"), context=client.context) as answer:  # noqa: S310 - https
        assert b"device-1" in answer.read()


def test_the_context_stays_as_strict_as_it_was(client: Client, serve: MakeServer) -> None:
    """urllib3 has modes in which it would change these."""
    client.get(serve().url())
    assert client.context.check_hostname
    assert client.context.verify_mode is ssl.CERT_REQUIRED
    assert client.context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_a_certificate_of_another_key_is_refused_before_anything_is_sent(ca: TestCa, device: Identity) -> None:
    other = ca.software_identity("device-2")
    with pytest.raises(CertificateMismatchError):
        connect(replace(device, certificate=other.certificate))


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["connect", "read", "total"])
def test_a_timeout_is_a_positive_number(name: str, seconds: float) -> None:
    with pytest.raises(UsageError, match=f"the {name} timeout"):
        Timeout(**{name: seconds})


def test_a_name_that_does_not_resolve_says_so(client: Client) -> None:
    with pytest.raises(PeerUnreachableError, match=r"the name does-not-exist\.invalid does not resolve"):
        client.get("https://does-not-exist.invalid/")


def test_a_client_closed_by_another_thread_is_explained(device: Identity, serve: MakeServer) -> None:
    server = serve()
    with connect(device) as client:
        client.get(server.url())
        pool = next(iter(client._pools._pools.values()))
        pool.close()
        with pytest.raises(UsageError, match="the client was closed before the request"):
            client.get(server.url())


def test_session_keys_are_not_logged_for_an_environment_variable(
    device: Identity, serve: MakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    with connect(device) as client:
        client.get(serve().url())
    assert not (tmp_path / "keys.log").exists()
