"""docs/how-to/other-programs.md, Revoked devices: what each server of the examples then refuses."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from support.example_machine import Machine, example_machine
from support.examples import NGINX, NGINX_FOLDERS, free_port
from support.how_to import FOLDER as PAGES
from support.how_to import HowTo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MQTT_CONNECT = bytes.fromhex("100c 0004 4d515454 04 02 003c 0000")  # MQTT 3.1.1, 3.1


@dataclass(frozen=True)
class Client:
    """A client with a key in software.

    Attributes:
        certificate: its chain, in a PEM file.
        key: its key, in another.
        trust: what vouches for servers.
    """

    certificate: Path
    key: Path
    trust: Path

    def get(self, port: int) -> str:
        """What an HTTPS server answers; what is wrong, where it does not."""
        curl = ["curl", "--silent", "--show-error", "--fail-with-body", "--cacert", self.trust, "--capath", "/dev/null"]
        identity = ["--cert", self.certificate, "--key", self.key]
        done = subprocess.run(
            [*curl, *identity, f"https://localhost:{port}/"], capture_output=True, text=True, check=False, timeout=20
        )
        return done.stdout + done.stderr

    def answer(self, port: int, sent: bytes) -> bytes:
        """What a server answers to ``sent``; where nothing is sent, what it says of the handshake."""
        context = ssl.create_default_context(cafile=str(self.trust))
        context.load_cert_chain(self.certificate, self.key)
        with (
            socket.create_connection(("localhost", port), timeout=20) as tcp,
            context.wrap_socket(tcp, server_hostname="localhost") as tls,
        ):
            tls.sendall(sent)
            return tls.recv(4)

    def is_refused(self, port: int) -> None:
        """The server says that the certificate was revoked: to who sends nothing, which could cut its alert off."""
        with pytest.raises(ssl.SSLError, match="alert certificate revoked"):
            self.answer(port, b"")


@dataclass(frozen=True)
class Fleet:
    """A machine with servers, and two clients of theirs.

    Attributes:
        machine: the machine, to which the CA's lists have been brought.
        good: a device.
        revoked: one whose certificate the CA has revoked.
    """

    machine: Machine
    good: Client
    revoked: Client


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with example_machine(tmp_path_factory.mktemp("machine")) as machine:
        folder = tmp_path_factory.mktemp("clients")
        good, revoked = (client(machine, folder, name) for name in ("sensor-98", "sensor-99"))
        ca = machine.ca
        ca.pki("revoke", "--device", "sensor-99", "--passphrase", f"file:{ca.folder.parent / 'passphrase'}")
        settings = machine.server.trust.parent
        instead = {"/etc/tpm-mtls": str(settings), "https://ca.example:8443": ca.url}
        HowTo("other-programs", machine.tpm, settings, instead).run_section("Revoked devices")
        yield Fleet(machine, good, revoked)


def client(machine: Machine, folder: Path, name: str) -> Client:
    key, request, chain = (folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
    making = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    subprocess.run(
        [*making, "-keyout", key, "-subj", "/CN=x", "-out", request], check=True, capture_output=True, timeout=20
    )
    ca = machine.ca
    unlock = ("--passphrase", f"file:{ca.folder.parent / 'passphrase'}")
    ca.pki("issue", "--csr", str(request), "--profile", "device", "--name", name, "--out", str(chain), *unlock)
    return Client(chain, key, machine.server.trust)


def setting(program: str) -> str:
    """What the page's table says for ``program``."""
    (part,) = [
        part
        for part in (PAGES / "other-programs.md").read_text().split("\n## ")
        if part.startswith("Revoked devices\n")
    ]
    (found,) = re.findall(rf"^\| {program} \| `(.*)` \|$", part, re.MULTILINE)
    return str(found)


# the program, its example, what runs that, and the words before which the setting goes
SERVERS = {
    "nginx": ("nginx_server.conf", NGINX, "        ssl_verify_depth "),
    "stunnel": ("stunnel_server.conf", ("stunnel", "{}"), "verifyChain = "),
    "mosquitto": ("mosquitto.conf", ("mosquitto", "-c", "{}"), "certfile "),
    "openssl s_server": ("openssl_server.sh", (), "-www"),
}


@contextmanager
def serving(machine: Machine, program: str, *, lists: bool) -> Iterator[int]:
    """The port of the program's example, which has the setting of the page, or not, while the block lasts."""
    name, command, before = SERVERS[program]
    port = free_port()
    end = " " if name.endswith(".sh") else "\n"
    line = setting(program).replace("/etc/tpm-mtls", str(machine.server.trust.parent))
    put_in = {before: f"{line}{end}{before}"} if lists else {}
    here = {"127.0.0.1:8443": f"127.0.0.1:{port}", "listener 8883": f"listener {port}"}
    instead = put_in | here | NGINX_FOLDERS
    where = f"127.0.0.1:{port}"
    with machine.files.running(name, *command, port=port, where=where, instead=instead):
        yield port
    machine.tpm.flush()  # stunnel's


def test_nginx_refuses_a_revoked_device_and_takes_another(fleet: Fleet) -> None:
    with serving(fleet.machine, "nginx", lists=True) as port:
        assert "The SSL certificate error" in fleet.revoked.get(port)
        assert "sensor-98" in fleet.good.get(port)


def test_s_server_refuses_a_revoked_device_and_takes_another(fleet: Fleet) -> None:
    with serving(fleet.machine, "openssl s_server", lists=True) as port:
        fleet.revoked.is_refused(port)
        assert "Ciphers supported" in fleet.good.get(port)


def test_without_the_setting_the_revoked_device_is_let_in(fleet: Fleet) -> None:
    with serving(fleet.machine, "nginx", lists=False) as port:
        assert "sensor-99" in fleet.revoked.get(port)


def test_stunnel_refuses_a_revoked_device_and_takes_another(fleet: Fleet) -> None:
    with serving(fleet.machine, "stunnel", lists=True) as port:
        fleet.revoked.is_refused(port)
        fleet.good.get(port)  # nobody listens behind it
    said = (fleet.machine.files.folder / "stunnel_server.conf.log").read_text()
    assert "Certificate accepted at depth=0: CN=sensor-98" in said
    assert "CERT: Pre-verification error: certificate revoked" in said


def test_an_mqtt_broker_refuses_a_revoked_device_and_takes_another(fleet: Fleet) -> None:
    with serving(fleet.machine, "mosquitto", lists=True) as port:
        assert fleet.good.answer(port, MQTT_CONNECT) == bytes.fromhex("20020000")
        fleet.revoked.is_refused(port)
