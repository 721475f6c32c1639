"""The backend, as the agent asks it: a nonce, a verdict on evidence, and whether it wants some.

Each request is one child process (`tpm_mtls.device_requests`): this one speaks to the TPM by tpm2-pytss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from tpm_mtls.attestation.health import HealthReport, encode_health
from tpm_mtls.attestation.messages import ANSWER_LIMIT, Challenge, HealthAnswer, QuoteEvidence, Verdict, decode, encode
from tpm_mtls.device_requests import Answer, Request, Server
from tpm_mtls.errors import EvidenceError, RequestRefusedError, ResponseError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable

_M = TypeVar("_M", bound=msgspec.Struct)

_HTTPS: Final = 443
_OK: Final = 200
_HINTS: Final = {
    403: "ask whoever runs the backend: tpm-mtls server device show; is this device revoked, or quarantined?",
    404: "is that the backend's URL, and does its version know attestation?",
    503: "the backend's log says more; the agent asks again later",
}
_JSON: Final = {"Accept": "application/json", "Content-Type": "application/json"}
_REASON_SHOWN: Final = 200  # characters
_ADVICE: Final = "check the network, --backend, and whether the backend runs; the agent asks again by itself"


def parse_backend(url: str) -> Server:
    """The backend at ``url``: ``https://HOST[:PORT][/PATH]``.

    Raises:
        UsageError: it is another scheme, or has a user, query or fragment.
    """
    hint = "give the backend like https://backend.example:8443"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"not a URL: {url[:80]!r}", hint=hint) from error
    plain = re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", parts.path)
    if parts.scheme != "https" or not parts.hostname or not plain:
        raise UsageError(f"not a backend's URL: {url[:80]!r}", hint=hint)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(f"a backend's URL with more than a path: {url[:80]!r}", hint=hint)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    base = parts.path.rstrip("/")
    port = port or _HTTPS
    return Server(parts.hostname, port, base, "the backend", f"https://{host}:{port}{base}", _ADVICE)


class Sender(Protocol):
    """What `tpm_mtls.device_requests.DeviceTransport.send_async` does."""

    def __call__(self, request: Request, /) -> Awaitable[Answer]:
        """The answer to ``request``."""


@dataclass(frozen=True)
class Backend:
    """The backend ``server``; requests go by ``send``.

    Every method raises:
        PeerUnreachableError, PeerUntrustedError, HandshakeError, CertificateExpiredError, CertificateNotYetValidError,
            TpmUnavailableError, TpmRefusedError, CredentialError, OpensslError, StorageError: as
            `tpm_mtls.device_requests.DeviceTransport.send`.
        RequestRefusedError: it answered with an HTTP error.
        ResponseError: its answer is none of ours.
    """

    server: Server
    send: Sender

    async def challenge(self) -> Challenge:
        """A nonce for this device."""
        return await self._post("/attestation/nonce", b"{}", Challenge)

    async def judge(self, evidence: QuoteEvidence) -> Verdict:
        """Its verdict on ``evidence``."""
        return await self._post("/attestation", encode(evidence), Verdict)

    async def report(self, health: HealthReport) -> HealthAnswer:
        """Tells it how the TPM is, and whether it wants a quote now."""
        return await self._post("/health", encode_health(health), HealthAnswer)

    async def _post(self, path: str, body: bytes, kind: type[_M]) -> _M:
        request = Request("POST", path, body, _JSON, ANSWER_LIMIT)
        answer = await self.send(request)
        if answer.status != _OK:
            said = _said(answer)
            raise RequestRefusedError(
                f"{self.server} answered {answer.status} to {path}" + (f": {said.error}" if said.error else ""),
                hint=said.hint or _HINTS.get(answer.status, "the backend's log says more"),
                status=answer.status,
            )
        try:
            return decode(answer.body, kind)
        except EvidenceError as error:
            raise ResponseError(
                f"{self.server} gave no usable answer to {path}: {error}", hint=error.hint, host=self.server.host
            ) from error


class _Said(msgspec.Struct):
    error: str = ""
    hint: str = ""


def _said(answer: Answer) -> _Said:
    """What the backend's own error answer says, in one line each; of another's nothing is shown."""
    try:
        said = msgspec.json.decode(answer.body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Said()
    return _Said(_one_line(said.error), _one_line(said.hint))


def _one_line(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:_REASON_SHOWN].strip()
