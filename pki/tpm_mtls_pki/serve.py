"""``pki serve``: the EST server's life. Its own certificate, the CRL's renewal, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import os
import signal
import ssl
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tpm_mtls.certificates import certificates_pem
from tpm_mtls.errors import StateError, TpmMtlsError
from tpm_mtls.files import PRIVATE_FILE, make_file, storage_errors, write_atomic
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.service_life import serving
from tpm_mtls.tls import ClientCertificates, server_context
from tpm_mtls.tls.listener import Listener, bind
from tpm_mtls.tls.transport import TlsTimeouts
from tpm_mtls_pki import crl
from tpm_mtls_pki.authority import CHAIN, CRL
from tpm_mtls_pki.crl import ISSUING_LIFETIME
from tpm_mtls_pki.csr import CheckedCsr
from tpm_mtls_pki.est_server import BODY_TIMEOUT, EstServer
from tpm_mtls_pki.exchange import LIFETIME, ExchangeStore
from tpm_mtls_pki.profiles import SERVER, Subject

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls.tls import IdentityContext
    from tpm_mtls_pki.evidence import Challenge
    from tpm_mtls_pki.issuance import Registrar

SERVER_FILE: Final = "serve.pem"
"""The EST server's own key and chain, made at every start; mode 0600."""

CONNECTIONS: Final = 256
"""Connections at once: each takes one of the usual 1024 file descriptors and about 100 kB, and anybody may open one, as
a device without a certificate must. More wait in the kernel's queue; an enrollment keeps its own for a second."""

_LOOPBACK = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
_LOCK = ".serve.lock"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host: address to listen at.
        port: TCP port, 0 for any free one.
        name: the host name in the server's certificate.
        minimum_version: lowest TLS version that is spoken.
        handshake_timeout: seconds for a TLS handshake.
        idle_timeout: seconds from a connection's start, or from an answer, to the end of the next request's headers.
        body_timeout: seconds for a request's body.
        nonce_lifetime: seconds for which a nonce may be used.
        drain_timeout: seconds for requests in progress when the server ends.
        maintenance_interval: seconds between two looks whether a CRL or the server's certificate is due.
        connections: at once, of all clients together.
    """

    host: str = "127.0.0.1"
    port: int = 0
    name: str = "localhost"
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    handshake_timeout: float = 10.0
    idle_timeout: float = 15.0
    body_timeout: float = BODY_TIMEOUT
    nonce_lifetime: float = LIFETIME
    drain_timeout: float = 10.0
    maintenance_interval: float = 2.0
    connections: int = CONNECTIONS


def serve(registrar: Registrar, options: ServeOptions, *, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; ``ready`` is called with the URL once connections are accepted.

    Raises:
        StateError: another process serves this CA.
        UsageError: the address is taken or not to be had.
        StorageError: the CA's folder cannot be written.
    """
    asyncio.run(_until_signalled(Service(registrar, options), ready))


async def _until_signalled(service: Service, ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    loop.add_signal_handler(signal.SIGHUP, _log.info, "nothing to reload: the CA's state is read as it changes")
    await service.run(ready)


class Service:
    """The EST server of one CA, inside a running event loop."""

    def __init__(self, registrar: Registrar, options: ServeOptions) -> None:
        self._registrar = registrar
        self._options = options
        self._folder = registrar.authority.folder
        self._stop = asyncio.Event()
        self._exchanges: ExchangeStore[Challenge] = ExchangeStore(time.monotonic, lifetime=options.nonce_lifetime)

    def stop(self) -> None:
        """Makes `run` return, after the requests in progress."""
        self._stop.set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serves until `stop`; ``ready`` is called with the URL once connections are accepted. Errors as `serve`."""
        with _alone(self._folder):
            await self._run(ready)

    async def _run(self, ready: Callable[[str], None]) -> None:
        renew_at = self._issue_own()
        context = self._context()
        self._maintain_crl()
        application = EstServer(self._registrar, self._exchanges, body_timeout=self._options.body_timeout).application()
        with bind(self._options.host, self._options.port) as listening:
            runner = web.AppRunner(
                application,
                access_log=None,
                keepalive_timeout=self._options.idle_timeout,
                shutdown_timeout=self._options.drain_timeout,
            )
            await runner.setup()
            listener = self._listener(listening, cast("web.Server", runner.server), context)
            listener.start()
            try:
                url = self._url(listening)
                async with serving(f"serving {url}"):
                    ready(url)
                    await self._maintain(context, renew_at)
            finally:
                await listener.stop()
                await runner.cleanup()
                await listener.drain(self._options.drain_timeout)

    def _listener(self, listening: socket.socket, server: web.Server, context: ssl.SSLContext) -> Listener:
        return Listener(
            listening,
            server,
            context=context,
            connections=self._options.connections,
            report=_report,
            timeouts=TlsTimeouts(handshake=self._options.handshake_timeout),
        )

    async def _maintain(self, context: IdentityContext, renew_at: datetime) -> None:
        """Until told to stop: renews the CRL and the server's own certificate when they are due."""
        while not self._stop.is_set():
            self._exchanges.sweep()
            try:
                await asyncio.to_thread(self._maintain_crl)
                if self._registrar.clock() >= renew_at:
                    renew_at = await asyncio.to_thread(self._issue_own)
                    context.reload()
            except TpmMtlsError as error:
                _log.error("%s; %s", error, error.hint)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.maintenance_interval):
                    await self._stop.wait()

    def _maintain_crl(self) -> None:
        authority, now = self._registrar.authority, self._registrar.clock()
        with authority.database.reading() as connection:
            due = crl.is_due(connection, now=now)
        if due:
            with authority.database.writing() as connection:
                issuer = self._registrar.issuer
                crl.issue_crl(connection, "issuing", issuer, lifetime=ISSUING_LIFETIME, now=now)
            _log.info("signed a new CRL")
        crl.publish(authority.database, "issuing", self._folder / CRL)

    def _issue_own(self) -> datetime:
        """Makes the server's key and certificate; returns when to do so again: at two thirds of its life."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = Subject(name=self._options.name, dns=(self._options.name,), addresses=_LOOPBACK)
        certificate = self._registrar.issue(SERVER, subject, CheckedCsr(key.public_key())).certificate
        pem = certificates_pem([certificate, self._registrar.authority.issuing])
        pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomic(self._folder / SERVER_FILE, pem, mode=PRIVATE_FILE)
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return begin + (end - begin) * 2 / 3

    def _context(self) -> IdentityContext:
        file = self._folder / SERVER_FILE
        # the issuing CA is in the trust file too: plain EST clients show their own certificate and no chain
        identity = Identity(key=KeyFile(file), certificate=file, trust=self._folder / CHAIN)
        return server_context(
            identity,
            minimum_version=self._options.minimum_version,
            client_certificates=ClientCertificates.OPTIONAL,
            clock=self._registrar.clock,
        )

    def _url(self, listening: socket.socket) -> str:
        port = listening.getsockname()[1]
        host = self._options.host
        if host in {"127.0.0.1", "::1"}:  # these are in the certificate; of other addresses only the name is
            return f"https://{host if host[0] != ':' else f'[{host}]'}:{port}"
        return f"https://{self._options.name}:{port}"


def _report(event: str, *, level: int = logging.INFO, **facts: Any) -> None:  # noqa: ANN401 - numbers or text
    """One line, its facts as JSON: what came from outside cannot forge a line."""
    _log.log(level, "%s %s", event, msgspec.json.encode(facts).decode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process serves a CA: two would take turns at overwriting its server certificate."""
    path = folder / _LOCK
    make_file(path)
    with storage_errors(path, "lock"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(f"the CA in {folder} is being served already", hint="end that process first") from error
        yield
    finally:
        os.close(descriptor)
