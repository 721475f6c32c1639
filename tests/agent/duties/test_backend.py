"""What the agent asks of its backend, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tpm_mtls.attestation.health import HealthReport, decode_health
from tpm_mtls.attestation.messages import Challenge, DeviceState, HealthAnswer, QuoteEvidence, Verdict, decode_evidence
from tpm_mtls.device_requests import Answer, Request, Server
from tpm_mtls.errors import RequestRefusedError, ResponseError, UsageError
from tpm_mtls_agent.duties.backend import Backend, parse_backend

if TYPE_CHECKING:
    from collections.abc import Callable

CHALLENGE = Challenge(nonce=bytes(32), lifetime=60)
VERDICT = Verdict(
    trusted=False, check=9, reason="PCR 7 differs", differences=("secure boot",), state=DeviceState.FAILING
)
EVIDENCE = QuoteEvidence(nonce=bytes(32), attest=b"a", signature=b"s", attestation_key=b"k", pcrs={})


@dataclass
class Answering:
    """A sender that gives one answer."""

    body: bytes
    status: int = 200
    asked: list[Request] = field(default_factory=list)

    async def __call__(self, request: Request, /) -> Answer:
        self.asked.append(request)
        return Answer(self.status, "application/json", None, (), self.body)

    def backend(self) -> Backend:
        return Backend(parse_backend("https://backend.example:8443"), self)


@pytest.mark.parametrize(
    ("call", "path", "answer"),
    [
        pytest.param(lambda backend: backend.challenge(), "/attestation/nonce", CHALLENGE, id="nonce"),
        pytest.param(lambda backend: backend.judge(EVIDENCE), "/attestation", VERDICT, id="evidence"),
        pytest.param(
            lambda backend: backend.report(HealthReport(time=1)), "/health", HealthAnswer(attest=True), id="health"
        ),
    ],
)
def test_each_request_has_its_path_and_its_answer(
    call: Callable[[Backend], Any], path: str, answer: msgspec.Struct
) -> None:
    sender = Answering(msgspec.json.encode(answer))
    assert asyncio.run(call(sender.backend())) == answer
    [request] = sender.asked
    assert (request.method, request.path, request.headers["Content-Type"]) == ("POST", path, "application/json")

    wrong = Answering(b'{"another": "thing"}')
    with pytest.raises(ResponseError, match=f"the backend at https://backend.example:8443 gave no usable .* to {path}"):
        asyncio.run(call(wrong.backend()))


def test_the_bodies_are_the_messages() -> None:
    sender = Answering(msgspec.json.encode(VERDICT))
    asyncio.run(sender.backend().judge(EVIDENCE))
    assert decode_evidence(sender.asked[0].body or b"") == EVIDENCE
    sender = Answering(b'{"attest": false}')
    asyncio.run(sender.backend().report(HealthReport(time=7)))
    assert decode_health(sender.asked[0].body or b"") == HealthReport(time=7)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, b'{"error": "the device is quarantined"}', ": the device is quarantined"),
        (404, b"<html>no</html>", ""),
        (503, b'{"error": "line\\nbreak \\u001b[31m"}', r": line\?break \?\[31m"),
        (500, b'{"error": "' + b"x" * 1000 + b'"}', ": x{200}"),
        (400, b"\xff", ""),
    ],
)
def test_an_error_answer_is_told_with_what_it_says(status: int, body: bytes, said: str) -> None:
    with pytest.raises(RequestRefusedError, match=f"answered {status} to /attestation/nonce{said}\n") as refusal:
        asyncio.run(Answering(body, status).backend().challenge())
    assert refusal.value.status == status
    assert refusal.value.hint


def test_the_backend_s_own_advice_is_the_hint() -> None:
    body = b'{"error": "another TPM", "hint": "ask\\nBob"}'
    with pytest.raises(RequestRefusedError, match=r"another TPM\n") as refusal:
        asyncio.run(Answering(body, 403).backend().challenge())
    assert refusal.value.hint == "ask?Bob"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://backend.example", ("backend.example", 443, "", "https://backend.example:443")),
        ("https://[::1]:8443/", ("::1", 8443, "", "https://[::1]:8443")),
        ("https://b.example/fleet/a/", ("b.example", 443, "/fleet/a", "https://b.example:443/fleet/a")),
    ],
)
def test_a_backend_s_url_may_have_port_and_path(url: str, expected: tuple[object, ...]) -> None:
    found = parse_backend(url)
    assert isinstance(found, Server)
    assert (found.host, found.port, found.base, found.url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("http://b.example", "https://", "b.example", "https://b.example:x", "https://u@b.example"),
        *("https://b.example/?a", "https://b.example/#a", "https://b.example/a b", "https://[::1"),
    ],
)
def test_anything_else_is_no_backend_s_url(url: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        parse_backend(url)
