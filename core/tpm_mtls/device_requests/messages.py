"""What is asked of a server, and what it answers; and the same on the pipe between a process and its child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from tpm_mtls.errors import PeerUnreachableError
from tpm_mtls.proxies import unused_proxy

BODY_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a request's body: evidence with a UEFI event log and an IMA list is the largest that is sent."""

ANSWER_LIMIT: Final = 64 * 1024
"""Bytes of an answer's body, where a request does not say otherwise: no answer is a download."""


@dataclass(frozen=True)
class Timeouts:
    """In seconds.

    Attributes:
        step: for connecting, for the TLS handshake, and for the next bytes of an answer.
        exchange: for a request and its whole answer, however slowly that trickles.
    """

    step: float = 20.0
    exchange: float = 60.0


@dataclass(frozen=True)
class Server:
    """Whom to ask.

    Attributes:
        host: name or address, as TLS verifies it.
        port: TCP port.
        base: path before that of each request, without a slash at its end.
        role: what it is to the user, for errors: ``the CA``.
        url: as the user gave it, for errors.
        advice: the hint where it does not answer.
    """

    host: str
    port: int
    base: str
    role: str
    url: str
    advice: str

    def __str__(self) -> str:
        """As errors name it."""
        return f"{self.role} at {self.url}"

    def unreachable(self, what: str) -> PeerUnreachableError:
        """The error for a server that ``what``, such as "did not answer in time"."""
        return PeerUnreachableError(f"{self} {what}", hint=self.advice + unused_proxy(self.host), host=self.host)


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        method: ``GET`` or ``POST``.
        path: below the server's base, such as ``/cacerts``.
        body: the body of a POST, at most `BODY_LIMIT` bytes.
        headers: its own header fields.
        limit: bytes of the answer's body that its caller can use.
    """

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    limit: int = ANSWER_LIMIT


@dataclass(frozen=True)
class Answer:
    """An answer, whatever its status.

    Attributes:
        status: HTTP status.
        content_type: its Content-Type, if it names one.
        retry_after: its Retry-After, if it has one.
        cookies: ``name=value`` of the cookies that it sets.
        body: at most one byte more than the request's limit.
    """

    status: int
    content_type: str | None
    retry_after: str | None
    cookies: tuple[str, ...]
    body: bytes


class Transport(Protocol):
    """Takes a request to the server and brings the answer."""

    def send(self, request: Request) -> Answer:
        """The answer to ``request``.

        Raises:
            PeerUnreachableError: nobody answers, or not in time.
            PeerUntrustedError, CertificateExpiredError, CertificateNotYetValidError: of the server's TLS certificate.
            HandshakeError: TLS failed otherwise.
        """


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to send, whereto and as whom; see `tpm_mtls.device_requests.transport.DeviceTransport`."""

    server: Server
    key: str
    certificate: str
    trust: str
    tcti: str | None
    authorization: bytes | None
    timeouts: Timeouts
    request: Request


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; or the error: the name of its class, its text, its hint, and its other attributes."""

    answer: Answer | None = None
    kind: str = ""
    message: str = ""
    hint: str = ""
    facts: dict[str, Any] = {}
