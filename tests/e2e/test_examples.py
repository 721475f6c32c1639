"""Every example against our backend or as its peer: device and servers have their keys in one TPM."""

from __future__ import annotations

import os
import queue
import re
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import paho.mqtt.client as mqtt
import pytest
from websockets.sync.server import serve

from support.device_ca import DeviceCa
from support.example_machine import Machine, example_machine
from support.examples import FOLDER, HTTP_CLIENTS, NGINX, NGINX_FOLDERS, free_port
from support.how_to import FOLDER as PAGES
from support.nginx import running_nginx
from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from websockets.sync.server import ServerConnection

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

STUNNEL = "stunnel_server.conf"
SHOP = """
def application(environment, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"welcome\\n"]
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with example_machine(tmp_path_factory.mktemp("machine")) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A server's identity that another CA vouches for."""
    return DeviceCa(tmp_path_factory.mktemp("stranger") / "ca").server()


@pytest.fixture(scope="module")
def strange_url(stranger: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_nginx(tmp_path_factory.mktemp("nginx") / "nginx", stranger) as url:
        yield url


@pytest.fixture(scope="module")
def plain_server() -> Iterator[int]:
    """The port of an HTTP server that knows no TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = b"the plain program's answer"
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", HTTP_CLIENTS)
def test_a_client_shows_the_device_to_the_backend_and_refuses_a_stranger(
    machine: Machine, strange_url: str, name: str
) -> None:
    examples = machine.files if name.endswith(".sh") else machine.handles
    done = examples.run(name, f"{machine.backend}/whoami")
    assert done.returncode == 0, done.stderr
    assert machine.name in done.stdout

    done = examples.run(name, f"{strange_url}/whoami")
    assert done.returncode != 0
    assert "certificate" in done.stderr.lower()
    assert done.stdout == ""


def test_asyncio_streams(machine: Machine, strange_url: str) -> None:
    done = machine.handles.run("asyncio_client.py", *host_and_port(machine.backend))
    assert machine.name in done.stdout, done.stderr
    done = machine.handles.run("asyncio_client.py", *host_and_port(strange_url))
    assert "certificate verify failed" in done.stderr


def test_openssl_s_client(machine: Machine, strange_url: str) -> None:
    request = "GET /whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    done = machine.files.run("openssl_client.sh", ":".join(host_and_port(machine.backend)), stdin=request)
    assert machine.name in done.stdout, done.stderr
    done = machine.files.run("openssl_client.sh", ":".join(host_and_port(strange_url)), stdin=request)
    assert done.returncode != 0
    assert done.stdout == ""


def test_websockets(machine: Machine, stranger: Identity) -> None:
    identities = (machine.server, stranger)
    for identity, outcome in zip(identities, ("hello, CN=", "certificate verify failed"), strict=True):
        with web_socket_server(identity, machine.tpm.tcti) as port:
            done = machine.handles.run("websockets_client.py", f"wss://localhost:{port}/")
        assert outcome in done.stdout + done.stderr


@contextmanager
def web_socket_server(identity: Identity, tcti: str) -> Iterator[int]:
    """One that greets clients with their certificate's subject."""

    def greet(connection: ServerConnection) -> None:
        subject = dict(pair for (pair,) in connection.socket.getpeercert()["subject"])
        connection.send(f"{connection.recv()}, CN={subject['commonName']}")

    with serve(greet, "127.0.0.1", 0, ssl=server_context(identity, tcti=tcti)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


# what runs each server, and its words that are others here
SERVERS = {
    "openssl_server.sh": ((), "Ciphers supported in s_server binary"),
    "nginx_server.conf": (NGINX, "hello, CN={device}"),
    STUNNEL: (("stunnel", "{}"), "the plain program's answer"),
    "uvicorn_server.py": ((), "hello, device"),
    "gunicorn_server.py": (("gunicorn", "--config", "{}", "--bind", "127.0.0.1:{port}", "shop:application"), "welcome"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_with_its_key_in_the_tpm_serves_the_device_and_nobody_without_a_certificate(
    machine: Machine, plain_server: int, name: str
) -> None:
    command, answer = SERVERS[name]
    port = free_port()
    (machine.files.folder / "shop.py").write_text(SHOP)
    instead = {"127.0.0.1:8443": f"127.0.0.1:{port}", "127.0.0.1:8080": f"127.0.0.1:{plain_server}"} | NGINX_FOLDERS
    words = [word.replace("{port}", str(port)) for word in command]
    where = f"127.0.0.1:{port}" if name.endswith(".sh") else str(port)
    with machine.files.running(name, *words, port=port, where=where, instead=instead):
        url = f"https://localhost:{port}/"
        done = machine.files.run("curl.sh", url)
        assert answer.format(device=machine.name) in done.stdout, done.stderr
        refused = subprocess.run(
            ["curl", "--silent", "--show-error", "--fail", "--cacert", machine.identity / "ca.cert.pem", url],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert refused.returncode != 0
        assert refused.stdout == ""
    if name == STUNNEL:
        machine.tpm.flush()  # it ends without a word to OpenSSL, so its key stays loaded
    assert machine.tpm.handles("transient") == []


@pytest.mark.parametrize(
    ("name", "command", "word"),
    [
        ("nginx_proxy.conf", NGINX, "127.0.0.1:8080"),
        ("stunnel_client.conf", ("stunnel", "{}"), "127.0.0.1:8081"),
    ],
)
def test_a_program_without_tls_reaches_the_backend_as_the_device_and_no_stranger(
    machine: Machine, strange_url: str, name: str, command: tuple[str, ...], word: str
) -> None:
    for url, reached in ((machine.backend, True), (strange_url, False)):
        port = free_port()
        instead = {
            word: f"127.0.0.1:{port}",
            "https://backend.example": url,
            "backend.example:443": url.removeprefix("https://"),
        }
        with machine.files.running(name, *command, port=port, instead=instead | NGINX_FOLDERS):
            asked = subprocess.run(
                ["curl", "--silent", "--fail", "-H", "Host: localhost", f"http://127.0.0.1:{port}/whoami"],
                capture_output=True,
                text=True,
                check=False,
                timeout=20,
            )
        machine.tpm.flush()  # stunnel's
        assert (machine.name in asked.stdout) is reached
        assert (asked.returncode == 0) is reached


def test_an_mqtt_broker_and_its_client_have_their_keys_in_the_tpm(machine: Machine, stranger: Identity) -> None:
    port = free_port()
    instead = {"listener 8883": f"listener {port}"}
    with machine.files.running("mosquitto.conf", "mosquitto", "-v", "-c", "{}", port=port, instead=instead) as said:
        received: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        subscribed = threading.Event()
        subscriber = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        subscriber.tls_set_context(client_context(load_identity(machine.identity), tcti=machine.tpm.tcti))
        subscriber.on_message = lambda *arguments: received.put(arguments[2])
        subscriber.on_subscribe = lambda *_: subscribed.set()
        subscriber.connect("localhost", port)
        subscriber.loop_start()
        subscriber.subscribe("cellar/#", qos=1)
        assert subscribed.wait(20)
        done = machine.handles.run("mqtt_publish.py", "localhost", str(port))
        assert done.returncode == 0, done.stderr
        message = received.get(timeout=20)
        assert (message.topic, message.payload) == ("cellar/temperature", b"21.5")
        subscriber.disconnect()
        subscriber.loop_stop()
        assert f"u'{machine.name}'" in said.read_text()

        with (
            socket.create_connection(("localhost", port), timeout=20) as tcp,
            client_context(replace(stranger, trust=machine.server.trust)).wrap_socket(
                tcp, server_hostname="localhost"
            ) as nobody,
            pytest.raises(ssl.SSLError, match="alert unknown ca"),
        ):
            nobody.recv(1)
    assert machine.tpm.handles("transient") == []


def host_and_port(url: str) -> list[str]:
    return url.removeprefix("https://").split(":")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("OPENSSL_CONF=/dev/null", ""),
        ("TPM2OPENSSL_TCTI=swtpm:port=1", "Cannot connect"),
        ("TPM2OPENSSL_TCTI=device:/nonexistent", "No such file or directory"),
        ("TPM2OPENSSL_TCTI={other}", "ErrorCode (0x"),
    ],
    ids=["no variables", "no simulator", "no device", "another TPM"],
)
def test_the_reason_stands_where_the_page_says(machine: Machine, tpm: SimulatedTpm, wrong: str, reason: str) -> None:
    wrong = wrong.format(other=tpm.tcti)
    done = machine.files.run("curl.sh", f"{machine.backend}/whoami", instead={"exec curl": f"{wrong} exec curl"})
    *before, last = done.stderr.splitlines()
    assert "unable to set private key file" in last
    assert reason in "".join(before)
    assert bool(before) == bool(reason)
    assert f"`{reason.removesuffix('0x')}" in (PAGES / "other-programs.md").read_text()


def test_a_python_server_without_a_tpm_says_so_and_ends(machine: Machine) -> None:
    """By itself gunicorn would listen all the same, and answer each client without TLS."""
    (machine.files.folder / "shop.py").write_text(SHOP)
    command = [Path(sys.executable).parent / "gunicorn", "--config", machine.files.copy("gunicorn_server.py", {})]
    done = subprocess.run(
        [*command, "--bind", "127.0.0.1:0", "shop:application"],
        cwd=machine.files.folder,
        env=os.environ | {"TPM_MTLS_TCTI": "swtpm:port=1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 3
    assert "no TPM answers at swtpm:port=1" in done.stderr


def test_the_page_shows_the_examples_as_they_are_and_names_each() -> None:
    page = (PAGES / "other-programs.md").read_text()
    examples = {
        path.name: path.read_text()
        for path in FOLDER.iterdir()
        if path.is_file() and path.name not in {"ruff.toml", "README.md"}
    }
    assert sorted(re.findall(r"\[(\w+\.\w+)\]\(\.\./\.\./examples/\1\)", page)) == sorted(examples)
    assert sorted(re.findall(r"^\| (\w+\.\w+) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)) == sorted(
        examples
    )
    shown = re.findall(r"^```(?:sh|nginx|python)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    whole = [block for block in shown if block.startswith(("#", '"""'))]
    assert whole
    assert set(whole) <= set(examples.values())
