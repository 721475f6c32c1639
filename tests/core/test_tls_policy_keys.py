"""TLS with keys that only a policy opens: the TPM itself refuses them when the machine booted something else."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from support.certificates import TestCa
from support.handshakes import attempt, handshake
from support.https_server import HttpsServer, Request, whoami
from support.nginx import running_nginx
from support.relay_policies import COUNTER, PolicyWorkshop
from tpm_mtls.authorization import Secret
from tpm_mtls.cli import main
from tpm_mtls.errors import (
    AuthorizationError,
    PemError,
    PolicyError,
    PolicyRefusedError,
    TpmMtlsError,
)
from tpm_mtls.files import write_atomic
from tpm_mtls.key_reference import KeyFile, PersistentHandle
from tpm_mtls.tls import IdentityContext, client_context, server_context

if TYPE_CHECKING:
    from pathlib import Path

    from support.relay_policies import PolicyKey
    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

REFUSED = r"booted something else than what the key is bound to \(TPM_RC_POLICY_FAIL, session 1, 0x99d\)"
CURL_TLS_FAILED = 35  # CURLE_SSL_CONNECT_ERROR
BOTH = pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def backend(ca: TestCa) -> IdentityContext:
    return server_context(ca.software_identity("localhost"))


@pytest.fixture
def workshop(tpm: SimulatedTpm, tmp_path: Path) -> PolicyWorkshop:
    """Keys and their policies are in one folder, as first boot leaves them."""
    return PolicyWorkshop(tpm, tmp_path, tmp_path)


def identify(ca: TestCa, key: PolicyKey, name: str = "device-1") -> Identity:
    return ca.identity(KeyFile(key.pem), key.public_key, name)  # type: ignore[arg-type]  # EC or RSA


def why(client: IdentityContext, server: IdentityContext) -> TpmMtlsError:
    """Why ``client`` does not connect, which its key is to blame for."""
    _, error, _ = attempt(client, server)
    assert isinstance(error, ssl.SSLError)
    cause = error.__cause__
    assert isinstance(cause, TpmMtlsError)
    try:
        return cause
    finally:
        del error, cause


@BOTH
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=["1.3", "1.2"])
def test_a_key_bound_to_pcrs_works_until_the_machine_boots_something_else(
    algorithm: str, version: ssl.TLSVersion, workshop: PolicyWorkshop, ca: TestCa, tpm: SimulatedTpm
) -> None:
    key = workshop.key([workshop.pcr(0, 7)], algorithm=algorithm)
    client = client_context(identify(ca, key), tcti=tpm.tcti, minimum_version=version)
    client.maximum_version = version
    server = server_context(ca.software_identity("localhost"), minimum_version=version)
    for _ in range(2):
        assert handshake(client, server).client == "device-1"
    assert client.diagnose() is None
    workshop.extend(7)
    refused = why(client, server)
    assert isinstance(refused, PolicyRefusedError)
    assert re.search(REFUSED, str(refused))
    assert refused.rc == 0x99D
    assert f"tpm-mtls policy check --key {key.pem}" in refused.hint
    assert isinstance(client.diagnose(), PolicyRefusedError)


@BOTH
def test_a_server_with_a_bound_key(algorithm: str, workshop: PolicyWorkshop, ca: TestCa, tpm: SimulatedTpm) -> None:
    key = workshop.key([workshop.pcr(7)], algorithm=algorithm)
    server = server_context(identify(ca, key, "localhost"), tcti=tpm.tcti)
    client = client_context(ca.software_identity("me"))
    assert handshake(client, server).server == "localhost"
    workshop.extend(7)
    _, _, error = attempt(client, server)
    assert error is not None
    assert isinstance(error.__cause__, PolicyRefusedError)
    del error


def test_a_bound_key_at_a_handle_has_its_policy_beside_the_certificate(
    workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    key = workshop.key([workshop.pcr(7)])
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", str(key.context), "0x81000100")
    tpm.flush()
    identity = ca.identity(PersistentHandle(0x81000100), key.public_key, "device-1")  # type: ignore[arg-type]  # EC
    client = client_context(identity, tcti=tpm.tcti)
    assert handshake(client, backend).client == "device-1"
    workshop.extend(7)
    assert isinstance(why(client, backend), PolicyRefusedError)


def test_an_operator_lets_it_work_again_with_the_same_certificate_and_context(
    workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    client = client_context(identify(ca, key), tcti=tpm.tcti)
    unsigned = why(client, backend)
    assert isinstance(unsigned, PolicyError)
    assert "there is none for it (POLICY_UNSIGNED" in str(unsigned)
    assert "tpm-mtls policy sign" in unsigned.hint
    workshop.approve(operator, [workshop.pcr(7)], version=1)
    assert handshake(client, backend).client == "device-1"
    workshop.extend(7)  # an update
    assert isinstance(why(client, backend), PolicyRefusedError)
    workshop.approve(operator, [workshop.pcr(7)], version=2)
    assert handshake(client, backend).client == "device-1"


def test_an_old_signed_policy_is_refused_after_a_newer_one(
    workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    operator = workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    counter = workshop.counter()
    workshop.approve(operator, [counter])
    client = client_context(identify(ca, key), tcti=tpm.tcti)
    assert handshake(client, backend)
    workshop.advance()
    refused = why(client, backend)
    assert isinstance(refused, PolicyRefusedError)
    assert "older than the newest one" in str(refused)
    assert "tpm-mtls policy install" in refused.hint
    tpm.tool("tpm2_nvundefine", COUNTER, "-C", "o")


def test_an_authorization_value_on_top(
    workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    key = workshop.key([workshop.pcr(7), {"type": "auth-value"}], authorization="secret")
    identity = identify(ca, key)
    client = client_context(identity, tcti=tpm.tcti, authorization=Secret(b"secret"))
    assert handshake(client, backend).client == "device-1"
    with pytest.raises(AuthorizationError, match="wrong authorization value"):
        client_context(identity, tcti=tpm.tcti, authorization=Secret(b"guess"))
    with pytest.raises(AuthorizationError, match="needs an authorization value"):
        client_context(identity, tcti=tpm.tcti)
    workshop.extend(7)
    assert isinstance(why(client, backend), PolicyRefusedError)


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lambda path: path.unlink(), PolicyError, "its file is missing"),
        (lambda path: path.write_text("{}"), PolicyError, "the file with the key's policy is damaged"),
        (lambda path: path.write_text(path.read_text().replace('"pcrs": [7]', '"pcrs": [8]')), PolicyError, "POLICY_"),
    ],
    ids=["missing", "damaged", "another"],
)
def test_a_policy_file_that_is_of_no_use_is_named_and_its_return_is_seen(
    damage: object, error: type[TpmMtlsError], text: str, workshop: PolicyWorkshop, ca: TestCa, tpm: SimulatedTpm
) -> None:
    key = workshop.key([workshop.pcr(7)])
    backend = server_context(ca.software_identity("localhost"))
    client = client_context(identify(ca, key), tcti=tpm.tcti)
    path = workshop.policies / f"{key.name.hex()}.policy.json"
    good = path.read_bytes()
    assert callable(damage)
    damage(path)
    found = why(client, backend)
    assert type(found) is error
    assert text in str(found)
    write_atomic(path, good)
    assert handshake(client, backend).client == "device-1", "the connection has survived the refusal"


def test_a_wrongly_signed_policy_is_named(
    workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    operator, stranger = workshop.operator(), workshop.operator()
    key = workshop.key([workshop.authorize(operator)])
    state = [workshop.pcr(7)]
    forged = workshop.signature(stranger, workshop.digest(state)).hex()
    workshop.approve(operator, state, signature=forged)
    client = client_context(identify(ca, key), tcti=tpm.tcti)
    found = why(client, backend)
    assert isinstance(found, PolicyError)
    assert "the signature of a signed policy is wrong" in str(found)


def test_without_the_relay_nobody_can_use_it(
    workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    client = client_context(identify(ca, workshop.key([workshop.pcr(7)])), tcti=tpm.tcti, relay="never")
    refused = why(client, backend)
    assert isinstance(refused, PolicyRefusedError)
    assert refused.rc == 0x12F
    assert "it needs the relay (--relay auto)" in refused.hint


@pytest.mark.parametrize("policies", [["-l", "sha256:7"], []], ids=["pcr", "none"])
def test_a_key_file_with_its_policy_inside_says_that_it_must_lie_beside(
    policies: list[str], workshop: PolicyWorkshop, ca: TestCa, tpm: SimulatedTpm
) -> None:
    """As `keygen export` and other tools write it; the provider reads the four-field form only."""
    key = workshop.key([workshop.pcr(7)])
    fields = bytes.fromhex("a1 0c 30 0a 30 08 a0 03 02 01 01 a1 01 04" if policies else "a4 05 0c 03 6b 65 79")
    write_atomic(key.pem, with_field(key.pem.read_bytes(), fields), mode=0o600)
    what = "a policy" if policies else "a description"
    with pytest.raises(PemError, match=f"carries {what} inside, which OpenSSL's tpm2 provider does not read") as found:
        client_context(identify(ca, key), tcti=tpm.tcti)
    assert "NAME.policy.json" in found.value.hint


@pytest.mark.parametrize("text", ["MAA", "MAA=", "", "A" * 400])
def test_a_key_file_that_is_no_asn1_is_damaged_and_nothing_else(
    text: str, workshop: PolicyWorkshop, ca: TestCa, tpm: SimulatedTpm
) -> None:
    key = workshop.key([workshop.pcr(7)])
    pem = f"-----BEGIN TSS2 PRIVATE KEY-----\n{text}\n-----END TSS2 PRIVATE KEY-----\n"
    write_atomic(key.pem, pem.encode(), mode=0o600)
    with pytest.raises(PemError, match="is damaged"):
        client_context(identify(ca, key), tcti=tpm.tcti)


def with_field(pem: bytes, field: bytes) -> bytes:
    """``pem`` with a field between emptyAuth and parent."""
    run = subprocess.run(
        ["openssl", "asn1parse", "-noout", "-out", "/dev/stdout"], input=pem, capture_output=True, check=True
    )
    der = run.stdout
    header = 2 + (der[1] & 0x7F) if der[1] & 0x80 else 2
    at = der.index(bytes.fromhex("a0030101")) + 5
    body = der[header:at] + field + der[at:]
    size = len(body).to_bytes(2, "big")
    text = ssl.DER_cert_to_PEM_cert(b"\x30\x82" + size + body)
    return text.replace("CERTIFICATE", "TSS2 PRIVATE KEY").encode()


def variables(tpm: SimulatedTpm, key: PolicyKey, state_dir: Path) -> dict[str, str]:
    """What ``tpm-mtls openssl-env`` prints for ``key``."""
    command = ["--state-dir", str(state_dir), "--key", str(key.pem), "--tcti", tpm.tcti, "--json"]
    outcome = CliRunner().invoke(main, ["openssl-env", *command], catch_exceptions=False)
    printed: dict[str, str] = json.loads(outcome.output)
    return printed


def whoami_once(connection: socket.socket, request: Request) -> None:
    whoami(connection, request)
    raise ConnectionAbortedError


def run(environment: dict[str, str], *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


@BOTH
def test_curl_uses_a_bound_key(
    algorithm: str, workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm, state_dir: Path
) -> None:
    key = workshop.key([workshop.pcr(7)], algorithm=algorithm)
    environment, identity = variables(tpm, key, state_dir), identify(ca, key)
    files = ("--cacert", str(identity.trust), "--cert", str(identity.certificate), "--key", str(identity.key))
    with HttpsServer(backend, whoami_once) as server:
        command = ("curl", "-sS", "--noproxy", "*", *files, server.url())
        done = run(environment, *command)
        assert json.loads(done.stdout)["device"] == "device-1", done.stderr
        workshop.extend(7)
        assert run(environment, *command).returncode == CURL_TLS_FAILED
        assert len(server.requests) == 1


@BOTH
def test_s_client_uses_a_bound_key(
    algorithm: str, workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm, state_dir: Path
) -> None:
    key = workshop.key([workshop.pcr(7)], algorithm=algorithm)
    environment, identity = variables(tpm, key, state_dir), identify(ca, key)
    certificate = str(identity.certificate)
    files = (
        "-CAfile",
        str(identity.trust),
        "-cert",
        certificate,
        "-cert_chain",
        certificate,
        "-key",
        str(identity.key),
    )
    with HttpsServer(backend, whoami_once) as server:
        address = f"127.0.0.1:{server.port}"
        command = ("openssl", "s_client", "-quiet", "-connect", address, "-servername", "localhost", *files)
        done = run(environment, *command, stdin="GET / HTTP/1.0\r\n\r\n")
        assert '"device": "device-1"' in done.stdout, done.stderr
        workshop.extend(7)
        assert run(environment, *command, stdin="GET / HTTP/1.0\r\n\r\n").returncode != 0
        assert len(server.requests) == 1


@BOTH
def test_nginx_serves_with_a_bound_key(
    algorithm: str, workshop: PolicyWorkshop, ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, state_dir: Path
) -> None:
    key = workshop.key([workshop.pcr(7)], algorithm=algorithm)
    me = ca.software_identity("me")
    served = identify(ca, key, "localhost")
    with running_nginx(tmp_path / "nginx", served, variables=variables(tpm, key, state_dir)) as url:
        port = int(url.rpartition(":")[2])

        def ask() -> bytes:
            client = client_context(me)  # a new one has no session to resume
            with (
                socket.create_connection(("127.0.0.1", port), timeout=20) as tcp,
                client.wrap_socket(tcp, server_hostname="localhost") as tls,
            ):
                tls.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: tls.recv(4096), b""))

        assert b"SUCCESS|CN=me" in ask()
        workshop.extend(7)
        with pytest.raises(ssl.SSLError):
            ask()


PYOPENSSL = """
import socket, sys, threading
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.pyopenssl import pyopenssl_context, verified_connection

key, certificate, trust, tcti, port = sys.argv[1:]
context = pyopenssl_context(Identity(parse_key_reference(key), Path(certificate), Path(trust)), tcti=tcti)
with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as tcp:
    tcp.settimeout(None)
    tls = verified_connection(context, tcp, "localhost")
    tls.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(tls.recv(4096).decode())
    tls.shutdown()
"""


@BOTH
def test_pyopenssl_uses_a_bound_key(
    algorithm: str, workshop: PolicyWorkshop, ca: TestCa, backend: IdentityContext, tpm: SimulatedTpm
) -> None:
    key = workshop.key([workshop.pcr(7)], algorithm=algorithm)
    identity = identify(ca, key)
    files = (str(identity.key), str(identity.certificate), str(identity.trust))
    with HttpsServer(backend, whoami_once) as server:
        command = (sys.executable, "-c", PYOPENSSL, *files, tpm.tcti, str(server.port))
        done = run({}, *command)
        assert '"device": "device-1"' in done.stdout, done.stderr
        workshop.extend(7)
        assert run({}, *command).returncode != 0
        assert len(server.requests) == 1
