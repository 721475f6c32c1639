"""A CA and EST server on the loopback address that tells the truth until it is told to lie.

    with LyingCa(tmp_path) as ca:
        token_file = ca.make_token("sensor-17")
        ca.next("simpleenroll", status(503, retry_after=1), other_key())    # then the truth again
        ca.present(not_after=ca.now - DAY)                                  # its TLS certificate
        ...
        assert ca.seen == ["cacerts", "simpleenroll"]

It is written with the standard library and ``cryptography`` alone, apart from the project's own CA on purpose.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
import threading
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

DAY = timedelta(days=1)


class Authority:
    """A key and certificate that issue others."""

    def __init__(self, name: str, issuer: Authority | None = None, *, now: datetime) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        self.certificate = (issuer or self).sign(
            _builder(self.name, self.key.public_key(), now - DAY, now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
        )

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return (
            builder.issuer_name(self.name)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, SHA256())
        )


def _builder(
    subject: x509.Name, public_key: CertificateIssuerPublicKeyTypes, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


@dataclass(frozen=True)
class Wrong:
    """What is to be wrong with a certificate."""

    not_before: datetime | None = None
    not_after: datetime | None = None
    issuer: Authority | None = None
    name: str | None = None
    public_key: ec.EllipticCurvePublicKey | None = None
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH


class Exchange:
    """One request, and the ways to answer it."""

    def __init__(self, ca: LyingCa, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.ca = ca
        self.handler = handler
        self.body = body
        self.operation = handler.path.rpartition("/")[2]

    def send(
        self, body: bytes, *, code: int = 200, content_type: str = "application/pkcs7-mime", **headers: str
    ) -> None:
        self.handler.send_response(code)
        self.handler.send_header("Content-Type", content_type)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def send_certificates(self, certificates: Sequence[x509.Certificate]) -> None:
        self.send(base64.b64encode(pkcs7.serialize_certificates(list(certificates), Encoding.DER)) + b"\n")

    def drop(self) -> None:
        """Ends the connection without another byte."""
        self.handler.close_connection = True
        with suppress(OSError):
            socket.socket.shutdown(self.handler.connection, socket.SHUT_RDWR)

    def truth(self, wrong: Wrong | None = None) -> None:
        """The honest answer, or one whose certificate is ``wrong``."""
        if self.operation == "cacerts":
            self.send_certificates([self.ca.issuing.certificate, self.ca.root.certificate])
            return
        csr = x509.load_der_x509_csr(base64.b64decode(self.body))
        device = self.ca.authenticate(self.handler.headers.get("Authorization", ""), csr)
        if device is None:
            self.send(b"the token is wrong or used\n", code=401, content_type="text/plain", www_authenticate="Basic")
            return
        self.send_certificates([self.ca.issue(csr, device, wrong)])


class LyingCa:
    """See the module's docstring.

    Attributes:
        now: what it takes for the time.
        url: where it listens.
        trust: file with its root certificate.
        seen: the operations asked for, in order.
        issued: the certificates it made, in order.
    """

    def __init__(self, folder: Path, *, now: datetime | None = None) -> None:
        self.folder = folder
        self.now = now or datetime.now(UTC)
        self.root = Authority("Lying Root", now=self.now)
        self.issuing = Authority("Lying Issuing CA", self.root, now=self.now)
        self.foreign = Authority("Somebody Else", now=self.now)
        self.trust = self.write("root.pem", self.root.certificate.public_bytes(Encoding.PEM))
        self.seen: list[str] = []
        self.issued: list[x509.Certificate] = []
        self._tokens: dict[str, str] = {}
        self._answered: dict[str, tuple[bytes, x509.Certificate]] = {}
        self._script: dict[str, deque[Callable[[Exchange], None]]] = defaultdict(deque)
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.present()
        self._server = _Server(self)
        self.url = f"https://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def write(self, name: str, data: bytes, *, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def make_token(self, device: str, token: str = "correct-horse") -> Path:  # noqa: S107 - a test's
        """A token for ``device``, in a file as ``tpm-mtls pki token create --out`` writes it."""
        self._tokens[device] = token
        return self.write(f"{device}.token", f"{device}:{token}\n".encode())

    def next(self, operation: str, *behaviours: Callable[[Exchange], None]) -> None:
        """How it answers the next requests for ``operation``; after these it tells the truth again."""
        self._script[operation].extend(behaviours)

    def always(self, operation: str, behaviour: Callable[[Exchange], None]) -> None:
        """How it answers every further request for ``operation``."""
        self._script[operation].extend([behaviour] * 1000)

    def present(
        self,
        *,
        name: str = "localhost",
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        issuer: Authority | None = None,
        maximum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        """Which TLS certificate it shows from now on."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))][
            : 2 if name == "localhost" else 1
        ]
        signer = issuer or self.issuing
        leaf = signer.sign(
            _builder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
                key.public_key(),
                not_before or self.now - DAY,
                not_after or self.now + 30 * DAY,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        chain = [leaf, signer.certificate]
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = maximum_version
        context.load_cert_chain(self.write("server.pem", pem))
        self.context = context

    def authenticate(self, authorization: str, csr: x509.CertificateSigningRequest) -> str | None:
        """The device that HTTP Basic names, if its token is right and unused, or used for this very key."""
        device, _, token = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if self._tokens.get(device) != token:
            return None
        key = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        used = self._answered.get(device)
        return device if used is None or used[0] == key else None

    def issue(self, csr: x509.CertificateSigningRequest, device: str, wrong: Wrong | None = None) -> x509.Certificate:
        """A certificate for ``device``; the same one again for the same key, as long as it was the truth."""
        key = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if wrong is None and device in self._answered:
            return self._answered[device][1]
        lie = wrong or Wrong()
        name = lie.name or device
        certificate = (lie.issuer or self.issuing).sign(
            _builder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
                lie.public_key or csr.public_key(),  # type: ignore[arg-type]  # a CSR's key may be none that signs
                lie.not_before or self.now - DAY,
                lie.not_after or self.now + 90 * DAY,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([lie.usage]), critical=False)
        )
        self.issued.append(certificate)
        if wrong is None:
            self._answered[device] = (key, certificate)
        return certificate

    def answer(self, exchange: Exchange) -> None:
        with self._lock:
            self.seen.append(exchange.operation)
            script = self._script[exchange.operation]
            behaviour = script.popleft() if script else truth()
        behaviour(exchange)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, ca: LyingCa) -> None:
        self.ca = ca
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]  # only TCP
        request.settimeout(10)
        # a client that does not trust us, or has enough, ends the connection
        with suppress(OSError), self.ca.context.wrap_socket(request, server_side=True) as connection:
            _Handler(connection, client_address, self)

    def handle_error(self, *_: object) -> None:
        raise AssertionError("the lying CA failed")  # pytest reports what ends a thread


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.ca.answer(Exchange(self.server.ca, self, b""))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.ca.answer(Exchange(self.server.ca, self, body))


def truth(wrong: Wrong | None = None) -> Callable[[Exchange], None]:
    """The honest answer, or one whose certificate is ``wrong``."""
    return lambda exchange: exchange.truth(wrong)


def status(
    code: int, text: str = "", *, content_type: str = "text/plain", **headers: str | int
) -> Callable[[Exchange], None]:
    """An HTTP status with a text; headers such as ``retry_after=3``."""
    return lambda exchange: exchange.send(
        text.encode(), code=code, content_type=content_type, **{name: str(value) for name, value in headers.items()}
    )


def body(data: bytes, *, content_type: str = "application/pkcs7-mime") -> Callable[[Exchange], None]:
    """Any body, with status 200."""
    return lambda exchange: exchange.send(data, content_type=content_type)


def html_page() -> Callable[[Exchange], None]:
    """What a captive portal says."""
    return body(b"<html>Welcome! Please log in.</html>", content_type="text/html; charset=utf-8")


def oversize(size: int) -> Callable[[Exchange], None]:
    """``size`` bytes of base64."""
    return body(b"A" * size)


def truncated() -> Callable[[Exchange], None]:
    """The second half of the certificates' structure is missing."""

    def answer(exchange: Exchange) -> None:
        der = pkcs7.serialize_certificates([exchange.ca.root.certificate], Encoding.DER)
        exchange.send(base64.b64encode(der[: len(der) // 2]))

    return answer


def foreign_chain() -> Callable[[Exchange], None]:
    """Certificates of somebody else's CA."""
    return lambda exchange: exchange.send_certificates([exchange.ca.foreign.certificate])


def other_key() -> Callable[[Exchange], None]:
    """A certificate for a key that nobody asked for."""
    return lambda exchange: exchange.truth(Wrong(public_key=ec.generate_private_key(ec.SECP256R1()).public_key()))


def cut_connection() -> Callable[[Exchange], None]:
    """The request arrives, no answer comes."""
    return lambda exchange: exchange.drop()


def lose_answer() -> Callable[[Exchange], None]:
    """The certificate is issued and the token used, but the answer never arrives."""

    def answer(exchange: Exchange) -> None:
        csr = x509.load_der_x509_csr(base64.b64decode(exchange.body))
        device = exchange.ca.authenticate(exchange.handler.headers["Authorization"], csr)
        assert device is not None
        exchange.ca.issue(csr, device)
        exchange.drop()

    return answer


def cut_body() -> Callable[[Exchange], None]:
    """The answer's headers promise more than comes."""

    def answer(exchange: Exchange) -> None:
        exchange.send(b"QUJD", content_length="4000")
        exchange.drop()

    return answer


def trickle(interval: float, *, headers: bool) -> Callable[[Exchange], None]:
    """A byte of the headers or of the body every ``interval`` seconds, for as long as the client endures it."""

    def answer(exchange: Exchange) -> None:
        out = exchange.handler.wfile
        out.write(b"HTTP/1.1 200 OK\r\n")
        if not headers:
            out.write(b"Content-Type: application/pkcs7-mime\r\nContent-Length: 9999\r\n\r\n")
        with suppress(OSError):
            while not exchange.ca.stopping.is_set():
                out.write(b"A")
                time.sleep(interval)
        exchange.handler.close_connection = True

    return answer


def silent() -> Callable[[Exchange], None]:
    """Nothing, until the test is over or the client has gone."""

    def answer(exchange: Exchange) -> None:
        exchange.handler.connection.settimeout(0.05)
        while not exchange.ca.stopping.is_set():
            with suppress(TimeoutError):
                if not exchange.handler.connection.recv(1):
                    break
        exchange.drop()

    return answer
