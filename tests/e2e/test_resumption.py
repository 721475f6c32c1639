"""Every library resumes the sessions of a client context by itself, with the real backend on the other side."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
import requests
import requests.adapters
import urllib3
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.backend import running_backend
from support.device_ca import DeviceCa, serial
from support.tpm_keys import make_key
from support.tpm_trace import CommandTrace
from tpm_mtls.identity import Identity
from tpm_mtls.tls import IdentityContext, client_context
from tpm_mtls_client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.backend import BackendProcess
    from support.tpm import SimulatedTpm


def by_http_client(backend: BackendProcess, context: IdentityContext, _: Path) -> dict[str, Any]:
    connection = http.client.HTTPSConnection("localhost", backend.port, context=context, timeout=20)
    connection.request("GET", "/whoami")
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def by_urllib3(backend: BackendProcess, context: IdentityContext, _: Path) -> dict[str, Any]:
    with urllib3.PoolManager(ssl_context=context, retries=False, timeout=20) as pool:
        answer: dict[str, Any] = pool.request("GET", f"{backend.url}/whoami").json()
        return answer


class _Adapter(requests.adapters.HTTPAdapter):
    """How requests takes a context."""

    def __init__(self, context: IdentityContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: object, **options: object) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **options)


def by_requests(backend: BackendProcess, context: IdentityContext, trust: Path) -> dict[str, Any]:
    with requests.Session() as session:
        session.mount("https://", _Adapter(context))
        answer: dict[str, Any] = session.get(f"{backend.url}/whoami", verify=str(trust), timeout=20).json()
        return answer


def by_httpx(backend: BackendProcess, context: IdentityContext, _: Path) -> dict[str, Any]:
    with httpx.Client(verify=context, timeout=20, trust_env=False) as client:
        answer: dict[str, Any] = client.get(f"{backend.url}/whoami").json()
        return answer


def by_async_httpx(backend: BackendProcess, context: IdentityContext, _: Path) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        async with httpx.AsyncClient(verify=context, timeout=20, trust_env=False) as client:
            answer: dict[str, Any] = (await client.get(f"{backend.url}/whoami")).json()
            return answer

    return asyncio.run(ask())


def by_aiohttp(backend: BackendProcess, context: IdentityContext, _: Path) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"{backend.url}/whoami") as response,
        ):
            answer: dict[str, Any] = await response.json()
            return answer

    return asyncio.run(ask())


def by_streams(backend: BackendProcess, context: IdentityContext, _: Path) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("localhost", backend.port, ssl=context)
        writer.write(b"GET /whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
        await writer.wait_closed()
        answer: dict[str, Any] = json.loads(body)
        return answer

    return asyncio.run(ask())


def by_our_client(backend: BackendProcess, context: IdentityContext, _: Path) -> dict[str, Any]:
    with Client(context) as client:
        response = client.get(f"{backend.url}/whoami")
        answer: dict[str, Any] = response.json()
        return answer


WAYS = [
    by_http_client,
    by_urllib3,
    by_requests,
    by_httpx,
    by_async_httpx,
    by_aiohttp,
    by_streams,
    by_our_client,
]


@pytest.fixture
def ca(tmp_path: Path) -> DeviceCa:
    ca = DeviceCa(tmp_path / "ca")
    ca.publish_crl()
    return ca


@pytest.fixture
def backend(ca: DeviceCa, tmp_path: Path) -> Iterator[BackendProcess]:
    with running_backend(tmp_path, ca.server(), "--tls12", crl=ca.crl_file) as backend:
        yield backend


@pytest.fixture
def device(ca: DeviceCa, tpm: SimulatedTpm, tmp_path: Path) -> Identity:
    """A device whose key is in the TPM."""
    key = make_key(tpm, tmp_path, handle=0x81000100)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = ca.certify(key.public_key, "sensor-17", names=[x509.DNSName("sensor-17")], usages=usages)
    return Identity(key.reference, ca.chain(certificate, "sensor-17"), ca.trust)


def test_connections_of_every_library_resume_and_the_tpm_signs_once(
    backend: BackendProcess, device: Identity, tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All with one context, so that they resume each other's sessions too."""
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    context = client_context(device, tcti=trace.tcti)
    for ask in WAYS:
        context.sessions.clear()
        before = trace.commands().count("Sign")
        answers = [ask(backend, context, device.trust) for _ in range(3)]
        assert [answer["device"] for answer in answers] == ["sensor-17"] * 3
        assert [answer["session_resumed"] for answer in answers] == [False, True, True], ask.__name__
        assert trace.commands().count("Sign") == before + 1, ask.__name__
    commands = trace.commands()
    assert all(ask(backend, context, device.trust)["session_resumed"] for ask in WAYS)
    assert trace.commands() == commands


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=lambda version: version.name)
def test_a_revoked_device_is_refused_on_a_resumed_connection(
    version: ssl.TLSVersion, backend: BackendProcess, device: Identity, ca: DeviceCa, tpm: SimulatedTpm
) -> None:
    context = client_context(device, tcti=tpm.tcti, minimum_version=version)
    context.maximum_version = version
    assert raw(backend, context) == (False, "200", {"device": "sensor-17"})
    assert raw(backend, context) == (True, "200", {"device": "sensor-17"})
    ca.publish_crl(serial(device))
    assert raw(backend, context) == (True, "403", {"error": "certificate revoked"})
    context.sessions.clear()
    assert raw(backend, context) == (False, "403", {"error": "certificate revoked"})


def raw(backend: BackendProcess, context: IdentityContext) -> tuple[bool, str, dict[str, Any]]:
    """A request without any library: whether the connection was resumed, the answer's status, device or error."""
    tcp = socket.create_connection(("localhost", backend.port), timeout=20)
    with context.wrap_socket(tcp, server_hostname="localhost") as tls, tls.makefile("rb") as lines:
        tls.sendall(b"GET /whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = lines.read().partition(b"\r\n\r\n")
        answer = json.loads(body)
        told = {name: value for name, value in answer.items() if name in {"device", "error"}}
        return bool(tls.session_reused), head.split()[1].decode(), told
