"""The tickets that our servers give: for how long they resume, and whom."""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa, now
from support.handshakes import handshake
from tpm_mtls.openssl import contexts
from tpm_mtls.openssl.library import openssl
from tpm_mtls.tls import ClientCertificates, IdentityContext, client_context, server_context, trust_context
from tpm_mtls.tls.sessions import SessionCache
from tpm_mtls.tls.tickets import LIFETIME, TicketKeys

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.identity import Identity

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BOTH = pytest.mark.parametrize("version", [V1_3, V1_2], ids=lambda version: version.name)


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def server_identity(ca: TestCa) -> Identity:
    return ca.software_identity("localhost")


@pytest.fixture
def server(server_identity: Identity) -> IdentityContext:
    return server_context(server_identity, minimum_version=V1_2)


def make_client(identity: Identity, version: ssl.TLSVersion = V1_3) -> IdentityContext:
    client = client_context(identity, minimum_version=version)
    client.maximum_version = version
    return client


def resumed(client: IdentityContext, server: IdentityContext) -> bool:
    return handshake(client, server, resume=True).resumed


@BOTH
def test_a_ticket_ends_with_the_clients_certificate(
    version: ssl.TLSVersion, ca: TestCa, server: IdentityContext
) -> None:
    """OpenSSL looks at the certificate's dates in a full handshake only, and its tickets live for two hours."""
    identity = ca.software_identity("device")
    end = now() + dt.timedelta(seconds=900)
    identity.certificate.write_bytes(ca.certify(public_key(identity), "device", not_after=end).read_bytes())
    client = make_client(identity, version)
    for _ in range(3):
        seen, life = life_of_ticket(client, server)
        assert seen == "device"
        assert 880 < life <= 900

    ordinary = make_client(ca.software_identity("other"), version)
    assert life_of_ticket(ordinary, server) == ("other", 7200)


def public_key(identity: Identity) -> object:
    from cryptography import x509

    return x509.load_pem_x509_certificate(identity.certificate.read_bytes()).public_key()


def life_of_ticket(client: IdentityContext, server: IdentityContext) -> tuple[str | None, int]:
    """The client's name and the seconds that its ticket lives, which the server told."""
    seen = handshake(client, server, resume=True)
    (kept,) = client.sessions._servers["localhost", None]
    return seen.client, kept.ends - openssl().SSL_SESSION_get_time(kept._copy)


@BOTH
def test_a_client_whose_certificate_has_expired_is_refused_even_if_it_lies_about_its_ticket(
    version: ssl.TLSVersion, ca: TestCa, server: IdentityContext
) -> None:
    identity = ca.software_identity("device")
    end = now() + dt.timedelta(seconds=3)
    identity.certificate.write_bytes(ca.certify(public_key(identity), "device", not_after=end).read_bytes())
    client = make_client(identity, version)
    client.sessions = SessionCache(clock=lambda: 0)
    assert [resumed(client, server) for _ in range(2)] == [False, True]
    time.sleep(end.timestamp() + 1.1 - time.time())
    (kept,) = client.sessions._servers["localhost", None]
    pretend = openssl().SSL_SESSION_set_time
    pretend.argtypes = (ctypes.c_void_p, ctypes.c_long)
    pretend(kept._copy, int(time.time()))
    with pytest.raises(ssl.SSLError, match="certificate expired"):
        handshake(client, server, resume=True)


@BOTH
def test_a_ticket_of_old_keys_means_a_full_handshake(
    version: ssl.TLSVersion, ca: TestCa, server: IdentityContext
) -> None:
    at = 1000.0
    keys = TicketKeys(contexts.address(server), clock=lambda: at)
    client = make_client(ca.software_identity("device"), version)
    keys.renew_when_due(1)
    server._tickets = keys
    assert [resumed(client, server) for _ in range(2)] == [False, True]
    at += LIFETIME - 1
    assert resumed(client, server)
    at += 1
    assert [resumed(client, server) for _ in range(2)] == [False, True]


@BOTH
def test_a_server_that_reloads_its_certificate_shows_the_new_one(
    version: ssl.TLSVersion, ca: TestCa, server: IdentityContext
) -> None:
    client = make_client(ca.software_identity("device"), version)
    assert [resumed(client, server) for _ in range(2)] == [False, True]
    server.reload()
    assert [resumed(client, server) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("wanted", [ClientCertificates.NONE, ClientCertificates.OPTIONAL])
def test_clients_without_a_certificate_get_ordinary_tickets(
    wanted: ClientCertificates, ca: TestCa, server_identity: Identity, tmp_path: Path
) -> None:
    server = server_context(server_identity, client_certificates=wanted)
    assert not handshake(trust_context(ca.trust), server).client
    out = s_client(server, ca, "-sess_out", str(tmp_path / "session"))
    assert "TLS session ticket lifetime hint: 7200 (seconds)" in out
    assert "Reused, TLSv1.3" in s_client(server, ca, "-sess_in", str(tmp_path / "session"))


def test_without_tickets_nothing_is_resumed(ca: TestCa, server: IdentityContext, tmp_path: Path) -> None:
    """The other way of TLS 1.2, a table in the server, would outlive the client's certificate."""
    device = ca.software_identity("device")
    chain = str(device.certificate)
    own = ["-cert", chain, "-cert_chain", chain, "-key", str(device.key), "-tls1_2"]
    session = tmp_path / "session"
    assert "New, TLSv1.2" in s_client(server, ca, *own, "-no_ticket", "-sess_out", str(session))
    assert not session.exists()  # there is nothing to keep
    assert "New, TLSv1.2" in s_client(server, ca, *own, "-sess_out", str(session))
    assert "Reused, TLSv1.2" in s_client(server, ca, *own, "-sess_in", str(session))


def s_client(server: IdentityContext, ca: TestCa, *options: str) -> str:
    """What OpenSSL's own client says of a connection to ``server``."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        thread = threading.Thread(target=_greet, args=(server, listening))
        thread.start()
        port = listening.getsockname()[1]
        command = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(ca.trust), "-ign_eof")
        done = subprocess.run(
            [*command, "-servername", "localhost", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        thread.join()
    assert done.returncode == 0, done.stderr
    return done.stdout


def _greet(server: IdentityContext, listening: socket.socket) -> None:
    connection, _ = listening.accept()
    connection.settimeout(20)
    with server.wrap_socket(connection, server_side=True) as tls:
        tls.sendall(b"welcome\n")
        with contextlib.suppress(OSError):
            tls.unwrap()
