"""Requests as the device: by a child with the provider, whose answers and errors are the parent's; blocking and not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa
from support.https_server import HttpsServer, fixed, http, whoami
from support.tpm_keys import make_key
from support.tpm_proxy import TpmProxy
from tpm_mtls.device_requests import BODY_LIMIT, Answer, DeviceTransport, Request, Server, Timeouts
from tpm_mtls.device_requests.child import perform
from tpm_mtls.device_requests.https import HttpsTransport
from tpm_mtls.device_requests.messages import Job
from tpm_mtls.errors import (
    PeerUnreachableError,
    PeerUntrustedError,
    StorageError,
    TpmMtlsError,
    TpmRefusedError,
    UsageError,
)
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

GET = Request("GET", "/who", None, {})
SIGN, TPM_RC_FAILURE = 0x15D, 0x101
ADVICE = "check the backend's URL"


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def device(ca: TestCa) -> Identity:
    return ca.software_identity("device-1")


@pytest.fixture
def https(ca: TestCa) -> Iterator[HttpsServer]:
    with HttpsServer(server_context(ca.software_identity("localhost")), whoami) as server:
        yield server


def at(port: int, host: str = "localhost") -> Server:
    return Server(host, port, "/base", "the backend", f"https://{host}:{port}", ADVICE)


@pytest.fixture(params=["blocking", "async"])
def send(request: pytest.FixtureRequest) -> Callable[[DeviceTransport, Request], Answer]:
    if request.param == "blocking":
        return lambda transport, asked: transport.send(asked)
    return lambda transport, asked: asyncio.run(transport.send_async(asked))


Send = "Callable[[DeviceTransport, Request], Answer]"


def test_the_child_loads_no_pytss_and_the_parent_neither_tls_nor_http() -> None:
    """A process with a TPM open pays for no HTTP library either."""
    look = "import sys, {}; print(sorted(set(sys.modules) & {{'tpm2_pytss', 'urllib3', 'tpm_mtls.tls'}}))"
    said = [
        subprocess.run([sys.executable, "-c", look.format(name)], check=True, capture_output=True, text=True).stdout
        for name in ("tpm_mtls.device_requests.child", "tpm_mtls.device_requests")
    ]
    assert said == ["['tpm_mtls.tls', 'urllib3']\n", "[]\n"]


def test_a_request_goes_with_the_device_s_certificate(https: HttpsServer, device: Identity, send: Send) -> None:
    answer = send(DeviceTransport(at(https.port), device), Request("POST", "/who", b"a body", {"X-Its": "own"}))

    assert answer.status == 200
    [seen] = https.requests
    assert (seen.device, seen.line, seen.body) == ("device-1", "POST /base/who HTTP/1.1", b"a body")
    assert seen.headers["x-its"] == "own"


def test_a_body_of_8_mib_goes_and_one_byte_more_does_not(https: HttpsServer, device: Identity, send: Send) -> None:
    transport = DeviceTransport(at(https.port), device)
    https._answer = fixed(http(200, b"taken"))

    assert send(transport, Request("POST", "/", bytes(BODY_LIMIT), {})).body == b"taken"
    assert len(https.requests[0].body) == BODY_LIMIT
    with pytest.raises(UsageError, match=f"the request to the backend at .* is {BODY_LIMIT + 1} bytes long"):
        send(transport, Request("POST", "/", bytes(BODY_LIMIT + 1), {}))


def test_of_an_answer_only_what_is_wanted_is_read(https: HttpsServer, device: Identity) -> None:
    https._answer = fixed(http(200, bytes(100)), then_close=True)

    assert len(DeviceTransport(at(https.port), device).send(replace(GET, limit=100)).body) == 100
    assert len(DeviceTransport(at(https.port), device).send(replace(GET, limit=10)).body) == 11


def test_the_child_s_errors_are_the_parent_s(https: HttpsServer, device: Identity, tmp_path: Path, send: Send) -> None:
    with pytest.raises(
        PeerUnreachableError, match=r"^the backend at https://127\.0\.0\.1:1 cannot be reached"
    ) as refusal:
        send(DeviceTransport(at(1, "127.0.0.1"), device), GET)
    assert (refusal.value.host, refusal.value.hint) == ("127.0.0.1", ADVICE)
    stranger = TestCa(tmp_path, "other").software_identity("other-1")
    with pytest.raises(PeerUntrustedError, match="TLS certificate of the backend"):
        send(DeviceTransport(at(https.port), replace(device, trust=stranger.trust)), GET)
    with pytest.raises(StorageError):
        send(DeviceTransport(at(https.port), replace(device, key=KeyFile(tmp_path / "gone.pem"))), GET)


def test_no_thread_is_left_that_could_be_the_last_to_know_the_context(https: HttpsServer, device: Identity) -> None:
    with HttpsTransport(at(https.port), client_context(device), Timeouts()) as transport:
        transport.send(GET)
        assert [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)] == []


def test_a_key_that_does_not_sign_is_no_fault_of_the_server(
    https: HttpsServer, ca: TestCa, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.answer(SIGN, TPM_RC_FAILURE)
    key = make_key(tpm, ca.folder)
    context = client_context(ca.identity(key.reference, key.public_key, "device"), tcti=proxy.tcti)

    with (
        HttpsTransport(at(https.port), context, Timeouts()) as transport,
        pytest.raises(TpmRefusedError, match=r"cannot sign with the key .*TPM_RC_FAILURE"),
    ):
        transport.send(GET)


def test_a_child_that_ends_without_a_result_is_told(
    monkeypatch: pytest.MonkeyPatch, device: Identity, send: Send
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")

    with pytest.raises(TpmMtlsError, match="the process that speaks to the backend ended without a result"):
        send(DeviceTransport(at(1), device), GET)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The child hangs, and ends by SIGTERM; its process id is in the file."""
    program, pid = tmp_path / "hangs", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}.tmp; mv {pid}.tmp {pid}; exec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("tpm_mtls.device_requests.transport._START", 0.2)
    return pid


def test_a_child_that_hangs_is_ended(hanging: Path, device: Identity, send: Send) -> None:
    transport = DeviceTransport(at(1), device, timeouts=Timeouts(exchange=0.2))

    with pytest.raises(PeerUnreachableError, match="did not answer in time") as refusal:
        send(transport, GET)

    assert refusal.value.hint == ADVICE
    assert not is_running(hanging)


def test_who_no_longer_waits_ends_the_child(hanging: Path, device: Identity) -> None:
    async def test() -> None:
        sending = asyncio.create_task(DeviceTransport(at(1), device).send_async(GET))
        async with asyncio.timeout(20):
            while not hanging.exists():  # noqa: ASYNC110, ASYNC240 - a file has no event
                await asyncio.sleep(0.01)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    asyncio.run(test())

    assert not is_running(hanging)


def is_running(pid: Path) -> bool:
    return subprocess.run(["ps", "-p", pid.read_text().strip()], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_what_the_child_does_in_this_process(https: HttpsServer, device: Identity) -> None:
    assert isinstance(device.key, KeyFile)
    job = Job(
        server=at(https.port),
        key=str(device.key),
        certificate=str(device.certificate),
        trust=str(device.trust),
        tcti=None,
        authorization=None,
        timeouts=Timeouts(),
        request=GET,
    )

    result = perform(job)
    assert result.answer is not None
    assert result.answer.status == 200
    failed = perform(Job(**{field: getattr(job, field) for field in job.__struct_fields__} | {"server": at(1)}))
    assert (failed.answer, failed.kind, failed.facts) == (None, "PeerUnreachableError", {"host": "localhost"})
