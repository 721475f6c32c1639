"""Explaining a connection to a person: every step, what was found, how long it took, and the one that failed."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Literal

from urllib3.exceptions import HTTPError

from tpm_mtls.certificates import load_certificates
from tpm_mtls.errors import HandshakeError, PeerUnreachableError, ResponseError, TpmMtlsError
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.tls import IdentityContext, client_context
from tpm_mtls_client.certificate_facts import certificate_facts, chain_facts
from tpm_mtls_client.dial import connect_tcp, resolve, start_tls
from tpm_mtls_client.handshake import listen
from tpm_mtls_client.http_errors import request_error
from tpm_mtls_client.pool import Connection
from tpm_mtls_client.relay_facts import relay_facts
from tpm_mtls_client.request import parse_target
from tpm_mtls_client.response import Response, read_body
from tpm_mtls_client.timing import Budget, Timeout, spending, time_sockets

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from tpm_mtls.key_reference import KeyReference
    from tpm_mtls_client.dial import Peer
    from tpm_mtls_client.handshake import Handshake
    from tpm_mtls_client.options import Settings

_ANSWER_LIMIT = 256 * 1024  # bytes of the page that is asked for; only its status and first lines matter
_NGINX_REFUSALS = {400, 495, 496}  # nginx completes TLS and refuses the certificate in HTTP (ngx_http_request.h)

Verdict = Literal["ok", "note", "problem"]


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        verdict: ``ok``, ``note`` (worth knowing) or ``problem`` (the connection failed here).
        step: what was looked at.
        text: what was found.
        seconds: how long the step took, where that says something.
    """

    verdict: Verdict
    step: str
    text: str
    seconds: float | None = None

    def __str__(self) -> str:
        """The line."""
        took = "" if self.seconds is None else f"  ({self.seconds * 1000:.1f} ms)"
        return f"{self.verdict:<8} {self.step:<12} {self.text}{took}"


@dataclass
class Report:
    """What was found, in order; with ``error``, the last finding is the problem.

    Attributes:
        peer: host and port.
        findings: the lines.
        facts: the same as data, for scripts.
        error: why there is no working connection.
    """

    peer: str
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: TpmMtlsError | None = None

    def __str__(self) -> str:
        """All lines."""
        return "\n".join(map(str, self.findings))

    def as_data(self) -> dict[str, Any]:
        """For ``--json``."""
        error = self.error and {"class": type(self.error).__name__, "message": str(self.error), "hint": self.error.hint}
        findings = [asdict(finding) for finding in self.findings]
        return {"peer": self.peer, "ok": self.error is None, "findings": findings, "error": error, **self.facts}

    def add(self, verdict: Verdict, step: str, text: str, seconds: float | None = None) -> None:
        """Appends a line."""
        self.findings.append(Finding(verdict, step, text, seconds))


def run_check(host: str, settings: Settings) -> Report:
    """Connects to ``host`` (``HOST``, ``HOST:PORT`` or an https URL), asks for a page, and reports.

    Raises:
        UsageError: ``host`` is none of these; any other error is in the report.
    """
    target = parse_target(host if "://" in host else f"https://{host}/")
    report = Report(str(target.peer))
    checker = _Checker(report, settings, target.peer)
    try:
        checker.check(target.path)
    except TpmMtlsError as error:
        report.error = error
        report.add("problem", checker.step, str(error))
    return report


class _Checker:
    def __init__(self, report: Report, settings: Settings, peer: Peer) -> None:
        self.report = report
        self.settings = settings
        self.peer = peer
        self.step = "identity"
        self._began = time.monotonic()

    def check(self, path: str) -> None:
        """Does all steps; the first that fails raises."""
        context = self._load_identity()
        time_sockets(context)
        handshake = listen(context)
        budget = Budget(Timeout.within(self.settings.seconds))
        limit = budget.connecting()
        with self._timed("name"):
            addresses = resolve(self.peer)
        self._ok(", ".join(dict.fromkeys(str(address[0]) for _, address in addresses)))
        with self._timed("tcp"):
            connection = connect_tcp(self.peer, addresses, limit)
        self._ok(f"connected to {connection.getpeername()[0]}, port {self.peer.port}")
        with self._timed("tls"):
            try:
                tls = start_tls(context, connection, self.peer, limit)
            except TpmMtlsError:
                self._describe_peer(handshake, "note", "(not verified) ")
                raise
        with tls:
            self._describe_handshake(tls, handshake)
            with self._timed("answer"), spending(budget):
                self._ask(tls, path, budget, handshake)

    def _load_identity(self) -> ssl.SSLContext:
        identity = self.settings.identity
        ours = certificate_facts(load_certificates(identity.certificate)[0])
        self.report.facts["our_certificate"] = asdict(ours)
        self.report.facts["key"] = {"reference": str(identity.key), "where": _where(identity.key)}
        self._ok(f"our certificate: {ours}")
        with self._timed("key"):
            context = client_context(
                identity,
                tcti=self.settings.tcti,
                relay=self.settings.relay,
                authorization=self.settings.authorization,
                minimum_version=self.settings.minimum_version,
            )
        self._ok(f"loaded: {identity.key}, {_where(identity.key)}")
        relay = relay_facts(context, identity)
        if relay is not None:
            self.report.facts["relay"] = asdict(relay)
            self.report.add("note" if relay.is_questionable else "ok", "relay", str(relay))
        return context

    def _describe_handshake(self, tls: ssl.SSLSocket, handshake: Handshake) -> None:
        cipher = tls.cipher()
        facts = {"version": tls.version(), "cipher": cipher and cipher[0], "group": handshake.group}
        self.report.facts["tls"] = facts
        self._ok(", ".join(str(fact) for fact in facts.values() if fact))
        self._describe_peer(handshake, "ok", "")
        self.report.add("ok", "name match", f"the chain is trusted and the certificate is for {self.peer.name}")
        scheme = handshake.signature_scheme
        self.report.facts["client_certificate_requested"] = handshake.certificate_was_requested
        self.report.facts["signature_scheme"] = scheme
        if not handshake.certificate_was_requested:
            self.report.add("note", "signature", "none: the peer did not ask for a client certificate")
            return
        if scheme is None:
            self.step = "signature"
            raise self._unsigned(tls.context)
        where = _where(self.settings.identity.key)
        self.report.add("ok", "signature", f"the peer asked for our certificate; signed {where} with {scheme}")

    def _unsigned(self, context: ssl.SSLContext) -> TpmMtlsError:
        """Why OpenSSL sent no certificate although the peer asked for one; it does not tell."""
        trouble = context.diagnose() if isinstance(context, IdentityContext) else None
        return trouble or HandshakeError(
            f"{self.peer} asks for a client certificate, and takes no signature algorithm that our key has",
            hint="a key of another algorithm is needed (ecc-p256 is common)",
            host=str(self.peer),
        )

    def _describe_peer(self, handshake: Handshake, verdict: Verdict, remark: str) -> None:
        chain = chain_facts(handshake.peer_chain)
        self.report.facts["peer_chain"] = [asdict(facts) for facts in chain]
        for position, facts in enumerate(chain):
            self.report.add(verdict, "issuer" if position else "peer", f"{remark}{facts}")

    def _ask(self, tls: ssl.SSLSocket, path: str, budget: Budget, handshake: Handshake) -> None:
        """Sends one request: with TLS 1.3 a peer that refuses our certificate says so only now."""
        try:
            response = self._get(tls, path, budget)
        except (ResponseError, PeerUnreachableError) as error:
            self.report.add("note", self.step, f"TLS works, but there is no answer in HTTP: {error}")
            return
        self.report.facts["status"] = response.status
        explanation = response.explanation()
        if response.status in _NGINX_REFUSALS and "SSL certificate" in explanation:
            raise HandshakeError(
                f"{self.peer} refuses our certificate, in HTTP: {explanation}",
                hint="the peer must trust the CA that issued it, and our file must hold the chain up to it",
                host=str(self.peer),
            )
        accepted = "; our certificate is accepted" if handshake.certificate_was_requested else ""
        self._ok(f"HTTP {response.status} to GET {path}{accepted}")

    def _get(self, tls: ssl.SSLSocket, path: str, budget: Budget) -> Response:
        peer = self.peer
        connection = Connection(peer.host, peer.port, context=tls.context)
        connection.sock = tls  # connected and verified: urllib3 has nothing to do but speak HTTP
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # what it said before it closed can still be read
                connection.request("GET", path, preload_content=False, decode_content=False)
            answer = connection.getresponse()
            body = read_body(answer, limit=_ANSWER_LIMIT, peer=str(peer))
        except (HTTPError, HTTPException, OSError) as error:
            raise request_error(error, str(peer), budget) from error
        finally:
            connection.close()
        return Response(answer.status, answer.headers, body, url=str(peer))

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        self.step = step
        self._began = time.monotonic()
        yield

    def _ok(self, text: str) -> None:
        self.report.add("ok", self.step, text, time.monotonic() - self._began)


def _where(key: KeyReference) -> str:
    """Where the key signs, in words."""
    if isinstance(key, PersistentHandle):
        return f"in the TPM (persistent handle {key.handle:#010x})"
    return f"in the TPM (key file {key.path})" if key.is_tss2() else f"in software (key file {key.path})"
