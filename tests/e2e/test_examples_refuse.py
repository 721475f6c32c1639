"""What the examples refuse, though somebody else on their machine would take it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from support.device_ca import DeviceCa
from support.example_machine import Machine, example_machine
from support.examples import HTTP_CLIENTS, free_port
from support.mounts import may_mount
from support.nginx import running_nginx
from tpm_mtls.certificates import load_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.identity import Identity

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with example_machine(tmp_path_factory.mktemp("machine")) as running:
        yield running


# a CA that the whole system trusts


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A server's identity that another CA vouches for."""
    return DeviceCa(tmp_path_factory.mktemp("stranger") / "ca").server()


@pytest.fixture(scope="module")
def strange_url(stranger: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_nginx(tmp_path_factory.mktemp("nginx") / "nginx", stranger, verify="off") as url:
        yield f"{url}/whoami"


@pytest.fixture(scope="module")
def system_cas(stranger: Identity, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes the place of /etc/ssl/certs: the stranger's root is one of the system's."""
    folder = tmp_path_factory.mktemp("certs")
    root = load_certificates(stranger.trust)[0].public_bytes(Encoding.PEM)
    for file in ("root.pem", "ca-certificates.crt"):
        (folder / file).write_bytes(root)
    subprocess.run(["openssl", "rehash", folder], check=True, capture_output=True)
    return folder


@pytest.mark.skipif(not may_mount(), reason="needs a mount namespace")
@pytest.mark.parametrize("name", HTTP_CLIENTS)
def test_a_client_refuses_a_server_that_only_the_systems_cas_vouch_for(
    machine: Machine, strange_url: str, system_cas: Path, name: str
) -> None:
    examples = machine.files if name.endswith(".sh") else machine.handles
    done = examples.run(name, strange_url, system_cas=system_cas)
    assert done.returncode != 0
    assert "certificate" in done.stderr.lower()
    assert done.stdout == ""


@pytest.mark.skipif(not may_mount(), reason="needs a mount namespace")
def test_curl_takes_that_server_without_the_words_for_it(machine: Machine, strange_url: str, system_cas: Path) -> None:
    """A curl that fails here needs ``--capath /dev/null`` no more."""
    done = machine.files.run("curl.sh", strange_url, system_cas=system_cas, instead={" --capath /dev/null": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_no_curl_of_the_project_trusts_the_systems_cas_beside_its_own() -> None:
    folders = ("docs", "examples", "packaging", *(path.parent.name for path in ROOT.glob("*/tpm_mtls*/")))
    files = [ROOT / "README.md", *(path for name in folders for path in (ROOT / name).rglob("*"))]
    texts = [path.read_bytes() for path in files if path.is_file() and path.suffix != ".pyc"]
    lines = [
        line.replace(r"\-", "-")  # as manual pages write it
        for text in texts
        if b"--cacert" in text.replace(b"\\", b"")
        for line in text.decode().splitlines()
    ]
    ours = [line for line in lines if re.search(r"\bcurl\b.* --cacert ", line)]
    assert len(ours) >= 9
    assert [line for line in ours if not re.search(r" --cacert \S+ --capath /dev/null ", line)] == []


# what the server does not give


@pytest.mark.parametrize("name", HTTP_CLIENTS)
def test_a_refusal_by_the_backend_ends_with_an_error_that_names_it(machine: Machine, name: str) -> None:
    examples = machine.files if name.endswith(".sh") else machine.handles
    done = examples.run(name, f"{machine.backend}/nowhere")
    assert done.returncode != 0
    assert "404" in done.stderr
    assert done.stdout == ""


def test_a_refusal_ends_an_exchange_by_streams_with_an_error_that_names_it(machine: Machine) -> None:
    where = machine.backend.removeprefix("https://").split(":")
    done = machine.handles.run("asyncio_client.py", *where, instead={"/whoami": "/nowhere"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "HTTP/1.1 404 Not Found"


@pytest.mark.parametrize(
    ("asked", "reached"), [("", "/"), ("/a/b", "/a/b"), ("/a?b=1&c", "/a?b=1&c"), ("?b=1#c", "/?b=1")]
)
def test_http_client_asks_for_all_of_the_address(
    machine: Machine, stranger: Identity, tmp_path: Path, asked: str, reached: str
) -> None:
    trusting = {"=client_context(": f"=__import__('ssl').create_default_context(cafile='{stranger.trust}') or ("}
    repeat = "location ~ . { return 200 $request_uri; }"
    with running_nginx(tmp_path / "nginx", stranger, verify="off", more=repeat) as url:
        done = machine.handles.run("http_client.py", f"{url}{asked}", instead=trusting)
    assert done.stdout == f"{reached}\n", done.stderr


def test_a_device_that_the_broker_refuses_is_told_at_once(machine: Machine, stranger: Identity) -> None:
    port = free_port()
    other = machine.server.trust.with_name("other.pem")  # a folder that the user mosquitto may enter
    other.write_bytes(stranger.trust.read_bytes())
    instead = {"listener 8883": f"listener {port}", f"cafile   {machine.server.trust}": f"cafile   {other}"}
    with machine.files.running("mosquitto.conf", "mosquitto", "-c", "{}", port=port, instead=instead) as said:
        done = machine.handles.run("mqtt_publish.py", "localhost", str(port))
        assert done.returncode == 1
        assert "the broker has closed the connection: Unspecified error" in done.stderr
        assert said.read_text().count("certificate verify failed") == 1
