"""One fault at a time on the other side: each has its own error, its cause in one line, and an advice."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.certificates import now, write_software_key
from support.device_ca import DeviceCa
from support.https_server import fixed, http
from tpm_mtls.errors import HandshakeError, PeerUnreachableError, PeerUntrustedError, ResponseError
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls_client import Timeout, connect

if TYPE_CHECKING:
    from pathlib import Path

    from support.certificates import TestCa
    from support.https_server import MakeServer, Request
    from tpm_mtls_client import Client

_DAY = dt.timedelta(days=1)


def _with_dates(ca: TestCa, not_before: dt.datetime, not_after: dt.datetime) -> Identity:
    """A server ``localhost`` whose certificate has these dates."""
    identity = ca.software_identity("localhost")
    assert isinstance(identity.key, KeyFile)
    key = serialization.load_pem_private_key(identity.key.path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return replace(
        identity, certificate=ca.certify(key.public_key(), "localhost", not_before=not_before, not_after=not_after)
    )


def _self_signed(folder: Path, trust: Path) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now() - _DAY, now() + _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_software_key(folder / "self.key.pem", key)
    (folder / "self.cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Identity(key=KeyFile(folder / "self.key.pem"), certificate=folder / "self.cert.pem", trust=trust)


# --- whom we do not trust: no request is sent ---


def test_a_certificate_for_another_name(client: Client, serve: MakeServer, ca: TestCa) -> None:
    server = serve(identity=ca.software_identity("backend.example"))
    with pytest.raises(PeerUntrustedError, match=r"it is for another name .*'localhost'") as caught:
        client.get(server.url())
    assert caught.value.host == f"localhost:{server.port}"
    assert server.requests == []


def test_a_certificate_for_another_address(client: Client, serve: MakeServer, ca: TestCa) -> None:
    server = serve(identity=ca.software_identity("backend.example"))
    with pytest.raises(PeerUntrustedError, match="it is for another address"):
        client.get(server.url(host="127.0.0.1"))
    assert server.requests == []


def test_a_certificate_of_another_ca(client: Client, serve: MakeServer, other_ca: TestCa) -> None:
    server = serve(identity=other_ca.software_identity("localhost"))
    with pytest.raises(PeerUntrustedError, match="its issuer is not among the trust anchors"):
        client.get(server.url())
    assert server.requests == []


def test_an_expired_certificate(client: Client, serve: MakeServer, ca: TestCa) -> None:
    server = serve(identity=_with_dates(ca, now() - 2 * _DAY, now() - _DAY))
    with pytest.raises(PeerUntrustedError, match="it has expired") as caught:
        client.get(server.url())
    assert "clock" in caught.value.hint
    assert server.requests == []


def test_a_certificate_of_the_future(client: Client, serve: MakeServer, ca: TestCa) -> None:
    server = serve(identity=_with_dates(ca, now() + _DAY, now() + 2 * _DAY))
    with pytest.raises(PeerUntrustedError, match="it is not valid yet"):
        client.get(server.url())
    assert server.requests == []


def test_a_self_signed_certificate(client: Client, serve: MakeServer, ca: TestCa, tmp_path: Path) -> None:
    server = serve(identity=_self_signed(tmp_path, ca.trust))
    with pytest.raises(PeerUntrustedError, match="it is self-signed"):
        client.get(server.url())
    assert server.requests == []


def test_a_certificate_of_a_client(serve: MakeServer, tmp_path: Path) -> None:
    """The extended key usage keeps one device from playing the backend for another."""
    ca = DeviceCa(tmp_path / "ca")
    server = serve(identity=ca.device("localhost"))
    with (
        connect(ca.device("sensor-17")) as client,
        pytest.raises(PeerUntrustedError, match="it is not meant for a TLS server"),
    ):
        client.get(server.url())
    assert server.requests == []


# --- who does not trust us ---


def test_a_server_that_trusts_another_ca_only(client: Client, serve: MakeServer, ca: TestCa, other_ca: TestCa) -> None:
    """In TLS 1.3 the refusal comes when the request is sent already."""
    server = serve(identity=replace(ca.software_identity("localhost"), trust=other_ca.trust))
    with pytest.raises(HandshakeError, match="does not trust the CA that issued it"):
        client.get(server.url())
    with pytest.raises(HandshakeError, match="does not trust the CA that issued it"):
        client.post(server.url(), body=b"x" * 5_000_000)
    assert server.requests == []


def test_the_same_in_tls_1_2(serve: MakeServer, ca: TestCa, device: Identity, other_ca: TestCa) -> None:
    server = serve(identity=replace(ca.software_identity("localhost"), trust=other_ca.trust), configure=_only_tls12)
    with (
        connect(device, minimum_version=ssl.TLSVersion.TLSv1_2) as client,
        pytest.raises(HandshakeError, match="does not trust the CA that issued it"),
    ):
        client.get(server.url())


def test_a_server_that_finds_us_revoked(serve: MakeServer, tmp_path: Path) -> None:
    ca = DeviceCa(tmp_path / "ca")
    device = ca.device("sensor-17")
    serial = x509.load_pem_x509_certificates(device.certificate.read_bytes())[0].serial_number
    crl = ca.publish_crl(serial)
    server = serve(identity=ca.server("localhost"), configure=lambda context: _check_crl(context, crl))
    with connect(ca.device("sensor-18")) as client:
        assert client.get(server.url()).status == 200
    with connect(device) as client, pytest.raises(HandshakeError, match="it is revoked") as caught:
        client.get(server.url())
    assert "enroll again" in caught.value.hint


def _check_crl(context: ssl.SSLContext, crl: Path) -> None:
    context.load_verify_locations(crl)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


# --- what is no TLS, or another one ---


def test_a_server_with_tls_1_2_only(client: Client, device: Identity, serve: MakeServer) -> None:
    server = serve(configure=_only_tls12)
    with pytest.raises(HandshakeError, match="does not speak the TLS versions that are allowed here") as caught:
        client.get(server.url())
    assert "--tls12" in caught.value.hint
    with connect(device, minimum_version=ssl.TLSVersion.TLSv1_2) as tolerant:
        assert tolerant.get(server.url()).json()["device"] == "device-1"


def test_a_server_without_tls(client: Client, serve: MakeServer) -> None:
    with pytest.raises(HandshakeError, match="does not speak TLS on that port") as caught:
        client.get(serve(fixed(http(400)), plain=True).url())
    assert caught.value.hint == "is it the HTTPS port?"


def test_a_plain_url_is_not_even_tried(client: Client, serve: MakeServer) -> None:
    server = serve(plain=True)
    with pytest.raises(Exception, match="not an https URL"):
        client.get(server.url().replace("https:", "http:"))
    assert server.requests == []


# --- who is not there, or silent ---


def test_a_port_where_nobody_listens(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PeerUnreachableError, match=rf"cannot reach localhost:{port}: the connection was refused"):
        client.get(f"https://localhost:{port}/")


def test_an_address_that_swallows_packets(device: Identity) -> None:
    """A full queue of connections that nobody accepts: the kernel drops what comes."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        with (
            connect(device, timeout=Timeout(connect=0.3)) as client,
            pytest.raises(PeerUnreachableError, match="did not accept a connection in time"),
        ):
            client.get(f"https://127.0.0.1:{port}/")


def test_a_server_that_accepts_and_says_nothing(client: Client, serve: MakeServer) -> None:
    with pytest.raises(PeerUnreachableError, match="did not finish the TLS handshake in time"):
        client.get(serve(silent=True).url(), timeout=Timeout(connect=0.2))


def test_a_server_that_cuts_the_handshake(client: Client, serve: MakeServer) -> None:
    with pytest.raises(HandshakeError, match="closed the connection in the middle of TLS"):
        client.get(serve(fixed(b"", then_close=True), plain=True).url())


def test_a_server_that_resets_the_connection(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            connection = listener.accept()[0]
            connection.recv(10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        with pytest.raises(PeerUnreachableError, match="the connection was reset"):
            client.get(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()


def test_a_server_that_takes_the_request_and_says_nothing(client: Client, serve: MakeServer) -> None:
    server = serve(fixed(b""))
    with pytest.raises(PeerUnreachableError, match=r"stayed silent for 0\.2 s"):
        client.get(server.url(), timeout=Timeout(read=0.2))
    assert len(server.requests) == 1


def test_a_server_that_drips_its_answer_byte_by_byte(client: Client, serve: MakeServer) -> None:
    def drip(connection: socket.socket, _: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with suppress(OSError):
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)

    began = time.monotonic()
    with pytest.raises(PeerUnreachableError, match=r"was not done within 0\.5 s"):
        client.get(serve(drip).url(), timeout=Timeout(read=0.3, total=0.5))
    assert time.monotonic() - began < 3


def test_a_server_that_drips_its_head(client: Client, serve: MakeServer) -> None:
    def drip(connection: socket.socket, _: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        with suppress(OSError):
            for _ in range(100):
                connection.sendall(b"X: y\r\n")
                time.sleep(0.05)

    with pytest.raises(PeerUnreachableError, match=r"was not done within 0\.5 s"):
        client.get(serve(drip).url(), timeout=Timeout(read=0.3, total=0.5))


def test_a_server_that_does_not_take_a_large_request(client: Client, serve: MakeServer) -> None:
    with pytest.raises(PeerUnreachableError, match=r"stayed silent for 0\.2 s"):
        client.post(serve(deaf=True).url(), body=b"x" * 32_000_000, timeout=Timeout(read=0.2))


# --- whose answer is broken ---


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", "is cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly this", "is cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not proper HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello", "not proper HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n12", "not proper HTTP"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "not proper HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not proper HTTP: bad status line"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "too many header fields"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", "not proper HTTP: line too long"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "larger than 16777216 bytes"),
    ],
)
def test_a_broken_answer(client: Client, serve: MakeServer, answer: bytes, message: str) -> None:
    with pytest.raises(ResponseError, match=message):
        client.get(serve(fixed(answer, then_close=True)).url())


def test_a_connection_closed_without_an_answer_may_be_a_refusal(client: Client, serve: MakeServer) -> None:
    server = serve(fixed(b"", then_close=True))
    with pytest.raises(HandshakeError, match="closed the connection without an answer") as caught:
        client.get(server.url())
    assert "refused our certificate without saying so" in caught.value.hint
    assert len(server.requests) == 1


def _only_tls12(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
