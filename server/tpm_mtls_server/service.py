"""The server's life: start, reload on SIGHUP, drain on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import ssl
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature

from tpm_mtls.certificates import load_certificates
from tpm_mtls.errors import TpmMtlsError, UsageError
from tpm_mtls.service_life import reloading, serving
from tpm_mtls.tls import server_context, utc_now
from tpm_mtls.tls.listener import Listener, bind
from tpm_mtls_server.assembly import Endpoints
from tpm_mtls_server.attestation import AttestationTrust
from tpm_mtls_server.http import HttpServer
from tpm_mtls_server.logs import log
from tpm_mtls_server.revocation import CrlFile

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from cryptography import x509

    from tpm_mtls_server.settings import Settings

_OTHER_DESCRIPTORS = 64
"""File descriptors besides the connections': database, CRL, TPM, standard streams."""


class Service:
    """The running backend. `start` makes one; all its methods belong to the event loop's thread."""

    def __init__(self, settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> None:
        """Loads key and certificates, opens the database and the port; accepts nothing before `start`.

        Raises:
            TpmMtlsError: any of that fails.
        """
        identity, limits = settings.identity, settings.limits
        reserve_descriptors(limits.connections)
        self._drain = limits.drain
        self._context = server_context(
            identity,
            tcti=settings.tcti,
            relay=settings.relay,
            authorization=settings.authorization,
            minimum_version=ssl.TLSVersion.TLSv1_2 if settings.tls12 else ssl.TLSVersion.TLSv1_3,
        )
        chain = load_certificates(identity.certificate)
        authorities = crl_authorities(load_certificates(identity.trust), chain)
        crl = CrlFile(settings.crl, authorities, clock=clock) if settings.crl else None
        trust = AttestationTrust(authorities)
        with contextlib.ExitStack() as opened:
            self._endpoints = Endpoints(settings, crl=crl, trust=trust, own_expiry=self._expiry, clock=clock)
            opened.callback(self._endpoints.close)
            self._socket = opened.enter_context(bind(settings.host, settings.port))
            self._http = HttpServer(self._endpoints.backend.handle, idle=limits.idle)
            self._listener = Listener(
                self._socket,
                self._http,
                context=self._context,
                connections=limits.connections,
                report=log,
                timeouts=limits.tls,
                handshake_threads=limits.handshake_threads,
            )
            opened.pop_all()
        self._reloading = asyncio.Lock()
        self.url = _url(settings.host, self._socket)
        _report(crl)

    def start(self) -> None:
        """Begins to accept connections."""
        self._listener.start()
        log("started", url=self.url)

    async def reload(self) -> None:
        """Reads key and certificate again at once; what fails leaves the old ones in use, and is logged.

        Files that were replaced are noticed at the next handshake without it.

        The clients' CA is not read again: that takes a restart, which also ends the sessions it allowed.
        """
        try:
            async with self._reloading:
                with reloading():
                    await asyncio.to_thread(self._context.reload)  # a TPM takes its time to load a key
        except TpmMtlsError as error:
            log("reload failed", level=logging.ERROR, error=str(error), hint=error.hint)
        else:
            log("reloaded", certificate_expires=self._expiry().isoformat())

    def _expiry(self) -> datetime:
        return self._context.certificate_ends

    async def drain(self) -> None:
        """Stops in order: no new connections, idle ones closed, running requests finished, all within limits."""
        log("stopping")
        await self._listener.stop()
        self._http.end()
        await self._listener.drain(self._drain)
        await asyncio.to_thread(self._endpoints.close)
        log("stopped")


async def run(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; ``announce`` gets the URL as soon as clients can connect. SIGHUP reloads.

    Raises:
        TpmMtlsError: it cannot start.
    """
    service = Service(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_unforeseen)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(service.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service.start()
    async with serving(f"serving {service.url}"):
        announce(service.url)
        await stop.wait()
    await service.drain()


def crl_authorities(
    anchors: Sequence[x509.Certificate], chain: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """Who may have signed the clients' CRL: ``anchors``, and those of the server's own ``chain`` that lead to them.

    So the file of trust anchors need not hold the issuing CA when that one has issued the server's certificate too.
    """
    found = list(anchors)
    for certificate in reversed(chain[1:]):
        if any(_issued(certificate, authority) for authority in found):
            found.append(certificate)
    return tuple(found)


def reserve_descriptors(connections: int) -> None:
    """Raises this process's limit of open files, as far as the system allows, to what ``connections`` need.

    Raises:
        UsageError: the system does not allow that many.
    """
    needed = connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UsageError(
                f"{connections} connections need {needed} open files, and the limit is {hard}",
                hint="fewer: --max-connections N; or raise the limit: LimitNOFILE= in the unit, ulimit -n",
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _log_unforeseen(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log("internal error", level=logging.ERROR, error=context["message"], exc_info=context.get("exception"))


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _url(host: str, listening: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"https://{shown}:{listening.getsockname()[1]}"


def _report(crl: CrlFile | None) -> None:
    if crl is None:
        log("no CRL: revoked certificates are accepted until they expire", level=logging.WARNING)
    elif problem := crl.problem():
        log("no usable CRL: requests are refused until there is one", level=logging.ERROR, problem=problem)
