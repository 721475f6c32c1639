"""A CA, a device and servers for the client's tests."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa
from support.https_server import HttpsServer, whoami
from tpm_mtls.key_reference import KeyFile
from tpm_mtls_client import Timeout, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.https_server import Answer, MakeServer
    from tpm_mtls.identity import Identity
    from tpm_mtls_client import Client


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    """The CA of both sides."""
    return TestCa(tmp_path)


@pytest.fixture
def other_ca(tmp_path: Path) -> TestCa:
    """A CA that nobody trusts."""
    return TestCa(tmp_path, "other")


@pytest.fixture
def device(ca: TestCa) -> Identity:
    """A device with a software key."""
    return ca.software_identity("device-1")


def server_tls(identity: Identity) -> ssl.SSLContext:
    """A server's context that requires client certificates of ``identity.trust``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert isinstance(identity.key, KeyFile)
    context.load_cert_chain(identity.certificate, identity.key.path)
    context.load_verify_locations(identity.trust)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def serve(ca: TestCa) -> Iterator[MakeServer]:
    """Starts servers; without an identity they are ``localhost`` of the CA."""
    with_exit: list[HttpsServer] = []

    def start(
        answer: Answer = whoami,
        *,
        identity: Identity | None = None,
        configure: Callable[[ssl.SSLContext], None] = lambda _: None,
        plain: bool = False,
        silent: bool = False,
        deaf: bool = False,
    ) -> HttpsServer:
        context = None if plain or silent else server_tls(identity or ca.software_identity("localhost"))
        if context is not None:
            configure(context)
        server = HttpsServer(context, answer, silent=silent, deaf=deaf)
        with_exit.append(server)
        return server.__enter__()

    yield start
    for server in with_exit:
        server.__exit__()


@pytest.fixture
def client(device: Identity) -> Iterator[Client]:
    """A client of the device."""
    with connect(device, timeout=Timeout(connect=5, read=5, total=10)) as connected:
        yield connected
