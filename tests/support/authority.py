"""A real CA in a folder, a clock to move, CSRs to hand in, and its EST server in a thread."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import ipaddress
import shutil
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tpm_mtls import est
from tpm_mtls.authorization import Secret
from tpm_mtls_pki import tokens
from tpm_mtls_pki.authority import Settings, create_authority
from tpm_mtls_pki.serve import ServeOptions, Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import rsa

    from tpm_mtls_pki.issuance import Registrar

PASSPHRASE = Secret(b"correct horse")
CRL_URL = "http://pki.example/crl"
NOW = datetime.now(UTC).replace(microsecond=0)


class MovableClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def move(self, **span: float) -> None:
        self.now += timedelta(**span)


def make_ca(folder: Path, **settings: str) -> Path:
    """A CA in ``folder`` whose passphrase is `PASSPHRASE`."""
    chosen = Settings(**({"name": "Example CA", "crl_url": CRL_URL} | settings))  # type: ignore[arg-type]  # by name
    create_authority(folder, chosen, passphrase=PASSPHRASE, root_passphrase=PASSPHRASE, now=NOW)
    return folder


def copy_ca(template: Path, folder: Path) -> Path:
    """A copy of a CA, which is quicker than another one."""
    shutil.copytree(template, folder)
    return folder


def new_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def make_csr(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    *,
    name: str | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    digest: hashes.HashAlgorithm | None = None,
) -> bytes:
    """A CSR in DER."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, digest or hashes.SHA256()).public_bytes(Encoding.DER)


def attacking_extensions() -> list[tuple[x509.ExtensionType, bool]]:
    """What a CSR must not get: CA rights, other names, other uses, an unknown extension."""
    return [
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (
            x509.SubjectAlternativeName([x509.DNSName("evil.example"), x509.IPAddress(ipaddress.ip_address("::1"))]),
            True,
        ),
        (x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.5.29.37.0")]), False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), False),
    ]


def make_token(registrar: Registrar, device: str, *, ttl: timedelta = timedelta(hours=1)) -> str:
    """A bootstrap token."""
    with registrar.authority.database.writing() as connection:
        return tokens.create(connection, device, ttl=ttl, now=registrar.clock())[1]


def basic(user: str, password: str) -> dict[str, str]:
    """The header of HTTP Basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class EstHost:
    """An EST server that runs in a thread, and requests to it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.folder = folder

    def context(
        self, certificate: x509.Certificate | None = None, key: ec.EllipticCurvePrivateKey | None = None
    ) -> ssl.SSLContext:
        """A client's TLS context, with its certificate if it has one."""
        context = ssl.create_default_context(cafile=self.folder / "root.pem")
        if certificate is not None and key is not None:
            file = self.folder / "client.pem"
            pem = certificate.public_bytes(Encoding.PEM)
            file.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            context.load_cert_chain(file)
        return context

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context or self.context())
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def enroll(
        self,
        csr: bytes,
        headers: dict[str, str] | None = None,
        *,
        renew: bool = False,
        context: ssl.SSLContext | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Posts a CSR (DER)."""
        path = est.SIMPLE_REENROLL if renew else est.SIMPLE_ENROLL
        headers = {"Content-Type": est.CSR_TYPE} | (headers or {})
        return self.request("POST", path, est.encode_body(csr), headers, context)


@contextlib.contextmanager
def est_host(registrar: Registrar, **options: Any) -> Iterator[EstHost]:  # noqa: ANN401 - those of ServeOptions
    """Runs the EST server in a thread for the time of the block."""
    loop = asyncio.new_event_loop()
    started: list[str] = []
    failures: list[BaseException] = []
    ready = threading.Event()
    service = Service(registrar, ServeOptions(**options))

    def note(url: str) -> None:
        started.append(url)
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(service.run(note))
        except BaseException as error:  # noqa: BLE001 - given to the test's thread
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait(20)
        if started:
            yield EstHost(started[0], registrar.authority.folder)
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(service.stop)
        thread.join(20)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        if failures:  # a server that ends too early, too
            raise failures[0]
