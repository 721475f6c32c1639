"""A TLS client that knows nothing of TPMs or of this project: standard library, key file, OpenSSL's configuration.

As a module it starts the program and tells it what to do; as a program it makes a context, then handshakes on request.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.identity import Identity

_CONFIGURATION = """
openssl_conf = openssl_init
[openssl_init]
providers = provider_sect
[provider_sect]
default = default_sect
tpm2 = tpm2_sect
[default_sect]
activate = 1
[tpm2_sect]
activate = 1
"""


class TlsProgram:
    """The program, which has made its context."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._expect("ready")

    def handshake(self, times: int = 1) -> None:
        """Full handshakes."""
        for _ in range(times):
            self._order("full")

    def resume(self) -> None:
        """A handshake that resumes the session of the one before."""
        self._order("resumed")

    def renew(self) -> None:
        """Another context with the same key."""
        self._order("context")

    def _order(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        self._expect(what)

    def _expect(self, what: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == what


@contextmanager
def tls_program(
    client: Identity, server: Identity, version: str, tcti: str, folder: Path, tap: Path
) -> Iterator[TlsProgram]:
    """The running program.

    Args:
        client: certificate and TPM key file of the client.
        server: of the server, to which it speaks, in software.
        version: TLSv1_2 or TLSv1_3.
        tcti: where its TPM is.
        folder: for files, and what the relay keeps.
        tap: where libtss2's pcap transport writes.
    """
    from tpm_mtls.openssl.provider import modules_folder  # here: the program itself knows nothing of this project

    configuration = folder / "tls_program.cnf"
    configuration.write_text(_CONFIGURATION)
    environment = os.environ | {
        "OPENSSL_CONF": str(configuration),
        "OPENSSL_MODULES": str(modules_folder()),
        "TPM2OPENSSL_TCTI": tcti,
        "TCTI_PCAP_FILE": str(tap),
        "XDG_RUNTIME_DIR": str(folder),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    arguments = [client.certificate, client.key, server.trust, server.certificate, server.key, version]
    with subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield TlsProgram(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def _main(certificate: str, key: str, trust: str, server_certificate: str, server_key: str, version: str) -> None:
    def context() -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.load_verify_locations(trust)
        made.minimum_version = made.maximum_version = ssl.TLSVersion[version]
        made.load_cert_chain(certificate, key)
        return made

    client = context()
    _say("ready")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(server_certificate, server_key)
    server.load_verify_locations(trust)
    server.verify_mode = ssl.CERT_REQUIRED
    session = None
    for order in sys.stdin:
        if order == "context\n":
            client = context()
        else:
            session = _handshake(client, server, session if order == "resumed\n" else None)
        _say(order.strip())


def _say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    near, far = socket.socketpair()

    def serve() -> None:
        with server.wrap_socket(far, server_side=True) as tls:
            assert tls.getpeercert()
            tls.sendall(b"welcome")
            tls.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(near, server_hostname="localhost", session=session) as tls:
        assert tls.recv(7) == b"welcome"
        assert tls.session_reused is (session is not None)
        received = tls.session
        tls.sendall(b"x")
    thread.join()
    return received


if __name__ == "__main__":
    _main(*sys.argv[1:])
