"""examples/c: the client in C, with keys in the TPM and with everything that it must refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from support.certificates import TestCa
from support.https_server import HttpsServer, fixed, http, whoami
from support.policies import extend, make_policy_key, pcr_policy
from support.terminal import shown_on_a_terminal
from support.tpm_keys import make_key
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.structures.tss2_key import parse_tss2_pem

if TYPE_CHECKING:
    from support.https_server import Answer, Request
    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

SOURCE = Path(__file__).parents[2] / "examples" / "c"
HANDLE = 0x81000100


def to_the_end(answer: Answer) -> Answer:
    """``answer``, and then the end of the connection, as TLS has it."""

    def answered(connection: socket.socket, request: Request) -> None:
        answer(connection, request)
        assert isinstance(connection, ssl.SSLSocket)
        connection.unwrap()
        raise ConnectionAbortedError

    return answered


WHOAMI = to_the_end(whoami)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "c"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("client"))
    subprocess.run(["make", "-s", "-C", folder], check=True)
    return folder / "client"


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def device(ca: TestCa) -> Identity:
    """A device with a software key, where the TPM does not matter."""
    return ca.software_identity("device-1")


class Caller:
    """Runs the program."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}

    def knows(self, tpm: SimulatedTpm, folder: Path, *options: str) -> None:
        """What ``eval "$(tpm-mtls openssl-env)"`` does."""
        command = [str(Path(sys.executable).parent / "tpm-mtls"), "openssl-env", "--json", "--tcti", tpm.tcti]
        command += ["--config", str(folder / "openssl.cnf"), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        self._environment |= json.loads(done.stdout)

    def __call__(
        self, port: int, identity: Identity, *, host: str = "localhost", path: str = "/"
    ) -> subprocess.CompletedProcess[str]:
        """Asks for ``path`` as ``identity``."""
        command = [self._program, host, str(port), path, identity.trust, identity.certificate, str(identity.key)]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False, timeout=20)


@pytest.fixture
def call(program: Path) -> Caller:
    return Caller(program)


def serve(
    ca: TestCa,
    answer: Answer = WHOAMI,
    *,
    name: str = "localhost",
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> HttpsServer:
    """A server with a certificate of ``ca``, which requires one of its clients."""
    identity = ca.software_identity(name)
    assert isinstance(identity.key, KeyFile)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(identity.certificate, identity.key.path)
    context.load_verify_locations(identity.trust)
    context.verify_mode = ssl.CERT_REQUIRED
    return HttpsServer(context, answer)


def test_only_on_a_terminal_the_answer_gets_a_newline(program: Path, ca: TestCa, device: Identity) -> None:
    with serve(ca, to_the_end(fixed(http(200, b'{"ok":true}')))) as server:
        command = [str(program), "localhost", str(server.port), "/", str(device.trust), str(device.certificate)]
        assert shown_on_a_terminal([*command, str(device.key)]).endswith(b'\r\n{"ok":true}\r\n')
        piped = subprocess.run([*command, str(device.key)], capture_output=True, check=True, timeout=20).stdout
    assert piped.endswith(b'\r\n{"ok":true}')


@pytest.mark.parametrize("handle", [None, HANDLE], ids=["tss2", "handle"])
def test_the_server_sees_the_device_whatever_form_its_key_has(
    tpm: SimulatedTpm, ca: TestCa, call: Caller, tmp_path: Path, handle: int | None
) -> None:
    key = make_key(tpm, tmp_path, handle=handle)
    identity = ca.identity(key.reference, key.public_key, "device-1")
    call.knows(tpm, tmp_path)
    with serve(ca) as server:
        done = call(server.port, identity, path="/whoami")
        assert done.returncode == 0, done.stderr
        head, _, body = done.stdout.partition("\n\n")
        assert head.startswith("HTTP/1.1 200")
        assert json.loads(body)["device"] == "device-1"
        assert server.requests[0].line == "GET /whoami HTTP/1.1"

        refused = call(server.port, dataclasses.replace(identity, key=PersistentHandle(HANDLE + 1)))
        assert refused.returncode == 1
        assert "client: cannot load the key" in refused.stderr
    assert tpm.handles("transient") == [], "the program gives its key back"


def test_a_key_that_is_bound_to_the_boot(tpm: SimulatedTpm, ca: TestCa, call: Caller, tmp_path: Path) -> None:
    path = tmp_path / "bound.key.pem"
    make_policy_key(tpm, path, pcr_policy())
    spki = parse_tss2_pem(path.read_bytes()).public.spki
    assert spki is not None
    identity = ca.identity(KeyFile(path), load_der_public_key(spki), "device-1")
    call.knows(tpm, tmp_path, "--key", str(path))
    with serve(ca) as server:
        assert call(server.port, identity).returncode == 0
        extend(tpm)
        refused = call(server.port, identity)
    assert refused.returncode == 1
    assert "client: the handshake failed" in refused.stderr
    assert [request.device for request in server.requests] == ["device-1"]


def test_another_server_than_the_one_that_was_meant(ca: TestCa, device: Identity, call: Caller, tmp_path: Path) -> None:
    with serve(ca, name="other") as server:
        assert_refused(call(server.port, device), "the handshake failed", "certificate verify failed")
        assert call(server.port, device, host="127.0.0.1").returncode == 1
    with serve(TestCa(tmp_path, "other")) as server:
        assert_refused(call(server.port, device), "the handshake failed", "certificate verify failed")
    assert server.requests == []


def test_an_old_version_of_tls(ca: TestCa, device: Identity, call: Caller) -> None:
    with serve(ca, version=ssl.TLSVersion.TLSv1_2) as server:
        assert_refused(call(server.port, device), "the handshake failed", "protocol version")


def test_a_certificate_of_another_key(ca: TestCa, device: Identity, call: Caller) -> None:
    other = ca.software_identity("device-2")
    with serve(ca) as server:
        assert_refused(
            call(server.port, dataclasses.replace(device, key=other.key)),
            "the key does not fit the certificate",
            "key values mismatch",
        )


def test_a_device_that_the_server_does_not_know(ca: TestCa, call: Caller, tmp_path: Path) -> None:
    """With TLS 1.3 the handshake is over for the client before the server has seen its certificate, and hung up."""
    stranger = dataclasses.replace(TestCa(tmp_path, "other").software_identity("device-1"), trust=ca.trust)
    with serve(ca) as server:
        done = call(server.port, stranger)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.partition("\n")[0] in {"client: the server did not answer", "client: cannot send the request"}
    assert "certificate verify failed" in server.failures[0]
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (to_the_end(fixed(http(404, b"not here"))), ""),
        (to_the_end(fixed(b"HTTP")), ""),
        (fixed(http(200, b"the first half"), then_close=True), "client: the answer is cut off"),
        (to_the_end(fixed(http(200, bytes(1 << 20)))), "client: the answer is longer than 1 MiB"),
        (to_the_end(fixed(b"")), "client: the server did not answer"),
    ],
    ids=["404", "short", "cut off", "too long", "nothing"],
)
def test_an_answer_that_is_none(ca: TestCa, device: Identity, call: Caller, answer: Answer, says: str) -> None:
    with serve(ca, answer) as server:
        done = call(server.port, device)
    assert done.returncode == 1
    assert done.stderr.partition("\n")[0] == says


def test_a_server_that_is_not_there(device: Identity, call: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert_refused(call(port, device), "cannot connect", "Connection refused")


def test_an_argument_too_few(program: Path) -> None:
    done = subprocess.run([program, "localhost"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def assert_refused(done: subprocess.CompletedProcess[str], what: str, why: str) -> None:
    """It ends with an error that says ``what`` did not work, and in OpenSSL's words ``why``."""
    assert done.returncode == 1
    assert done.stdout == ""
    first, _, rest = done.stderr.partition("\n")
    assert first == f"client: {what}"
    assert why in rest
