"""A running program takes over a certificate or key that was replaced, and loses no connection by it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.certificates import TestCa, now, write_software_key
from support.handshakes import attempt, handshake
from support.tpm_keys import TpmKey, make_key
from support.tpm_trace import CommandTrace
from tpm_mtls.errors import CertificateMismatchError, UsageError
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tls import IdentityContext, client_context, server_context, trust_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
HANDLE = 0x81000100
LOGGER = "tpm_mtls.tls.own_key"


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def server(ca: TestCa) -> IdentityContext:
    return server_context(ca.software_identity("localhost"), minimum_version=V1_2)


class Device:
    """A device's identity, and its renewals as `tpm-mtls keygen renew` makes them: first the key, then the certificate.

    ``kind`` is ``tss2``, ``handle`` or ``software``.
    """

    def __init__(self, kind: str, tpm: SimulatedTpm, ca: TestCa) -> None:
        self.kind, self.tpm, self.ca = kind, tpm, ca
        # tpm2-tools need the TPM's slots for themselves, so key files are made before a program has one loaded
        self._spare = [make_key(tpm, ca.folder) for _ in range(3)] if kind == "tss2" else []
        self.key = self._make_key()
        self.identity = ca.identity(self.key.reference, self.key.public_key, "device")

    def renew(self, name: str) -> None:
        self._put(self.ca.certify(self.key.public_key, name))

    def rotate(self, name: str) -> None:
        self._put(self.rotate_key(name))

    def rotate_key(self, name: str) -> Path:
        """Replaces the key only; returns the certificate that belongs to it."""
        if self.kind == "handle":
            self.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
            self.key = self._make_key()
        else:
            new = self._make_key()
            assert isinstance(new.reference, KeyFile)
            assert isinstance(self.identity.key, KeyFile)
            new.reference.path.replace(self.identity.key.path)
            self.key = new
        return self.ca.certify(self.key.public_key, name)

    def _put(self, certificate: Path) -> None:
        certificate.replace(self.identity.certificate)

    def _make_key(self) -> TpmKey:
        if self._spare:
            return self._spare.pop()
        if self.kind == "handle":
            return make_key(self.tpm, self.ca.folder, handle=HANDLE)
        private = ec.generate_private_key(ec.SECP256R1())
        path = self.ca.folder / f"software-{len(list(self.ca.folder.iterdir()))}.key.pem"
        write_software_key(path, private)
        return TpmKey(KeyFile(path), private.public_key())


@pytest.fixture(params=["tss2", "handle", "software"])
def device(request: pytest.FixtureRequest, tpm: SimulatedTpm, ca: TestCa) -> Device:
    return Device(request.param, tpm, ca)


@pytest.fixture
def handle_device(tpm: SimulatedTpm, ca: TestCa) -> Device:
    return Device("handle", tpm, ca)


@pytest.fixture
def soft_device(tpm: SimulatedTpm, ca: TestCa) -> Device:
    return Device("software", tpm, ca)


def test_a_client_shows_a_renewed_certificate_at_its_next_handshake(device: Device, server: IdentityContext) -> None:
    client = client_context(device.identity, tcti=device.tpm.tcti)
    assert handshake(client, server).client == "device"
    device.renew("renewed")
    assert handshake(client, server).client == "renewed"
    assert handshake(client, server, resume=True).client == "renewed"


def test_a_client_signs_with_a_rotated_key_at_its_next_handshake(device: Device, server: IdentityContext) -> None:
    client = client_context(device.identity, tcti=device.tpm.tcti)
    assert handshake(client, server).client == "device"
    device.rotate("rotated")
    assert handshake(client, server).client == "rotated"
    device.rotate("again")
    assert handshake(client, server).client == "again"


def test_a_rotated_key_is_used_through_the_relay_too(handle_device: Device, server: IdentityContext) -> None:
    """The relay remembers keys between connections: by their Names, not by their handles."""
    client = client_context(handle_device.identity, tcti=handle_device.tpm.tcti, relay="always")
    assert handshake(client, server).client == "device"
    handle_device.rotate("rotated")
    assert handshake(client, server).client == "rotated"
    handle_device.renew("renewed")
    assert handshake(client, server).client == "renewed"


def test_a_server_shows_a_renewed_certificate_and_a_rotated_key(device: Device, ca: TestCa) -> None:
    backend = server_context(device.identity, tcti=device.tpm.tcti)
    client = client_context(ca.software_identity("client"))
    assert handshake(client, backend, name="device").server == "device"
    device.renew("renewed")
    assert handshake(client, backend, name="renewed").server == "renewed"
    device.rotate("rotated")
    assert handshake(client, backend, name="rotated").server == "rotated"


@pytest.mark.parametrize("version", [V1_3, V1_2], ids=lambda version: version.name)
def test_no_session_of_the_old_certificate_is_resumed(ca: TestCa, device: Device, version: ssl.TLSVersion) -> None:
    client = client_context(device.identity, tcti=device.tpm.tcti, minimum_version=version)
    client.maximum_version = version
    identity = ca.software_identity("localhost")
    server = server_context(identity, minimum_version=V1_2)
    handshake(client, server)
    assert handshake(client, server, resume=True).resumed
    device.renew("renewed")
    seen = handshake(client, server, resume=True)
    assert (seen.resumed, seen.client) == (False, "renewed")
    assert handshake(client, server, resume=True).resumed

    ca.certify(_public_key(identity), "localhost").replace(identity.certificate)
    assert not handshake(client, server, resume=True).resumed  # a ticket of the server's old certificate is no good
    assert handshake(client, server, resume=True).resumed


def _public_key(identity: Identity) -> CertificatePublicKeyTypes:
    from cryptography import x509

    return x509.load_pem_x509_certificate(identity.certificate.read_bytes()).public_key()


@pytest.mark.parametrize("kind", ["tss2", "handle"])
def test_looking_for_a_replacement_and_a_renewed_certificate_take_no_tpm_command(
    kind: str,
    tpm: SimulatedTpm,
    ca: TestCa,
    server: IdentityContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(kind, tpm, ca)
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    client = client_context(device.identity, tcti=trace.tcti)
    handshake(client, server)
    loaded = trace.commands()
    handshake(client, server)
    signing = trace.commands()[len(loaded) :]
    assert signing == ["ECC_Parameters", "Hash", "Sign"]
    device.renew("renewed")
    assert handshake(client, server).client == "renewed"
    os.utime(device.identity.certificate)  # the same content, written again
    handshake(client, server)
    assert trace.commands() == loaded + 3 * signing


@pytest.mark.parametrize("kind", ["tss2", "software"])
def test_between_the_new_key_and_its_certificate_the_old_ones_stay_in_use(
    kind: str, tpm: SimulatedTpm, ca: TestCa, server: IdentityContext, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(kind, tpm, ca)
    client = client_context(device.identity, tcti=tpm.tcti)
    handshake(client, server)
    certificate = device.rotate_key("rotated")
    with caplog.at_level(logging.DEBUG, LOGGER):
        for _ in range(3):
            assert handshake(client, server).client == "device"
        assert caplog.records == []
        certificate.replace(device.identity.certificate)
        assert handshake(client, server).client == "rotated"


def test_a_handle_between_its_new_key_and_the_certificate_is_a_failure_that_ends_with_it(
    handle_device: Device, server: IdentityContext
) -> None:
    """The old key is gone by then; nobody can sign with it any more."""
    client = client_context(handle_device.identity, tcti=handle_device.tpm.tcti)
    handshake(client, server)
    certificate = handle_device.rotate_key("rotated")
    seen, client_error, _ = attempt(client, server)
    assert seen is None
    assert isinstance(client_error, ssl.SSLError)
    assert isinstance(client_error.__cause__, CertificateMismatchError)
    certificate.replace(handle_device.identity.certificate)
    assert handshake(client, server).client == "rotated"


def test_a_certificate_before_its_key_waits_for_it(soft_device: Device, server: IdentityContext) -> None:
    client = client_context(soft_device.identity)
    handshake(client, server)
    assert isinstance(soft_device.identity.key, KeyFile)
    old = soft_device.identity.key.path.read_bytes()
    certificate = soft_device.rotate_key("rotated")
    new = soft_device.identity.key.path.read_bytes()
    soft_device.identity.key.path.write_bytes(old)
    certificate.replace(soft_device.identity.certificate)
    assert handshake(client, server).client == "device"
    soft_device.identity.key.path.write_bytes(new)
    assert handshake(client, server).client == "rotated"


@pytest.mark.parametrize("damage", ["empty", "cut", "missing", "foreign", "expired", "unreadable"])
def test_a_certificate_that_will_not_do_changes_nothing_and_is_told_once(
    damage: str, device: Device, ca: TestCa, server: IdentityContext, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_context(device.identity, tcti=device.tpm.tcti)
    handshake(client, server)
    path = device.identity.certificate
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "unreadable":
        path.unlink()
        path.mkdir()
    elif damage == "foreign":
        shutil.copy(ca.software_identity("other").certificate, path)
    elif damage == "expired":
        past = now() - timedelta(days=3)
        expired = ca.certify(device.key.public_key, "late", not_before=past, not_after=past + timedelta(days=1))
        expired.replace(path)
    else:
        path.write_bytes(good[:300] if damage == "cut" else b"")
    with caplog.at_level(logging.DEBUG, LOGGER):
        for _ in range(3):
            assert handshake(client, server).client == "device"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the present certificate and key stay in use: " in caplog.text
    if damage == "unreadable":
        path.rmdir()
    path.write_bytes(good)
    device.renew("renewed")
    assert handshake(client, server).client == "renewed"


def test_a_certificate_that_is_not_valid_yet_is_taken_over_when_it_is(
    soft_device: Device, ca: TestCa, server: IdentityContext
) -> None:
    clock = now() - timedelta(hours=1)
    client = client_context(soft_device.identity, clock=lambda: clock)
    handshake(client, server)
    start = now() - timedelta(minutes=30)
    ca.certify(soft_device.key.public_key, "soon", not_before=start).replace(soft_device.identity.certificate)
    assert handshake(client, server).client == "device"
    clock = now()
    assert handshake(client, server).client == "soon"
    assert client.certificate_ends == start + timedelta(days=30)
    with pytest.raises(UsageError, match="has no certificate of its own"):
        _ = trust_context(ca.trust).certificate_ends


def test_a_tpm_that_is_away_for_a_moment_does_not_cost_the_rotated_key(
    tpm: SimulatedTpm, ca: TestCa, server: IdentityContext
) -> None:
    device = Device("handle", tpm, ca)
    client = client_context(device.identity, tcti=tpm.tcti)
    handshake(client, server)
    device.rotate("rotated")
    tpm.stop()
    _, error, _ = attempt(client, server)
    assert isinstance(error, ssl.SSLError)
    tpm.simulator.start()
    attempt(client, server)  # the TPM restarted: at the latest this one loads the key again
    assert handshake(client, server).client == "rotated"


def test_existing_connections_go_on_while_new_ones_show_the_new_certificate(
    device: Device, server: IdentityContext
) -> None:
    client = client_context(device.identity, tcti=device.tpm.tcti)
    near, far = socket.socketpair()
    thread = threading.Thread(target=_echo, args=(server, far))
    thread.start()
    with client.wrap_socket(near, server_hostname="localhost") as tls:
        for name, change in (("renewed", device.renew), ("rotated", device.rotate)):
            change(name)
            assert handshake(client, server).client == name
            tls.sendall(b"still there?")
            assert tls.recv(20) == b"still there?"
    thread.join()


def _echo(server: ssl.SSLContext, far: socket.socket) -> None:
    with server.wrap_socket(far, server_side=True) as tls, contextlib.suppress(OSError):
        while data := tls.recv(20):
            tls.sendall(data)


def test_many_threads_see_one_change(device: Device, server: IdentityContext) -> None:
    client = client_context(device.identity, tcti=device.tpm.tcti)
    handshake(client, server)
    assert client.own_key is not None
    generation = client.own_key.generation
    device.rotate("rotated")
    seen: list[str | None] = []

    def connect() -> None:
        client_end, server_end = socket.socketpair()
        peer = threading.Thread(target=_name, args=(server, server_end, seen))
        peer.start()
        with client.wrap_socket(client_end, server_hostname="localhost") as tls:
            tls.recv(1)
        peer.join()

    threads = [threading.Thread(target=connect) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["rotated"] * 6
    assert client.own_key.generation == generation + 1


def _name(server: ssl.SSLContext, far: socket.socket, seen: list[str | None]) -> None:
    with server.wrap_socket(far, server_side=True) as tls, contextlib.suppress(OSError):
        subject = (tls.getpeercert() or {})["subject"]
        seen.append(str(dict(part[0] for part in subject)["commonName"]))  # type: ignore[arg-type,misc]  # typeshed
        tls.sendall(b".")
        tls.recv(1)


@pytest.fixture
def port(device: Device) -> Iterator[int]:
    """Where an asyncio server with the device's identity listens."""
    context = server_context(device.identity, tcti=device.tpm.tcti)
    loop = asyncio.new_event_loop()
    run = asyncio.run_coroutine_threadsafe
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(20):
            writer.write(data)
            await writer.drain()
        writer.close()

    backend = run(asyncio.start_server(echo, "127.0.0.1", 0, ssl=context), loop).result(20)
    try:
        yield backend.sockets[0].getsockname()[1]
    finally:

        async def end() -> None:
            backend.close()
            await backend.wait_closed()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)

        run(end(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_openssl_sees_the_new_certificate_of_an_asyncio_server_whose_connections_go_on(
    port: int, device: Device, ca: TestCa
) -> None:
    visitor = ca.software_identity("visitor")
    client = client_context(visitor)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        client.wrap_socket(plain, server_hostname="device") as tls,
    ):
        tls.sendall(b"one")
        assert tls.recv(20) == b"one"
        device.renew("renewed")
        assert _shown_to_openssl(port, visitor) == "renewed"
        device.rotate("rotated")
        assert _shown_to_openssl(port, visitor) == "rotated"
        tls.sendall(b"two")
        assert tls.recv(20) == b"two"


def _shown_to_openssl(port: int, visitor: Identity) -> str:
    """The common name that stock openssl verifies on the other side."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(visitor.trust)]
    command += ["-cert", str(visitor.certificate), "-key", str(visitor.key), "-verify_return_error", "-brief"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=False, env=environment)
    said = done.stdout + done.stderr
    assert "Verification: OK" in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("Peer certificate: ")]
    return line.partition("CN")[2].lstrip(" =").split(",")[0]  # "CN = x", from OpenSSL 3.2 on "CN=x"
