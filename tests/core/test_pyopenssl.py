"""pyOpenSSL's contexts. Its OpenSSL starts once per process, so each test is a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.certificates import TestCa, write_software_key
from support.tpm_keys import ALGORITHMS, make_key
from tpm_mtls.key_reference import KeyFile

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

HANDLE = 0x81000100

_PROGRAM = """
import json, socket, ssl, sys, threading
from pathlib import Path
from tpm_mtls.authorization import Secret
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.pyopenssl import pyopenssl_context, verified_connection

given = json.loads(sys.argv[1])
V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

def identity(name):
    key, certificate, trust = given[name]
    return Identity(parse_key_reference(key), Path(certificate), Path(trust))

def context(name="client", **options):
    return pyopenssl_context(identity(name), tcti=given["tcti"], **options)

def shake(client, server, host="localhost", connect=verified_connection):
    "What the server saw of the client, and the version; or the client's error."
    from OpenSSL import SSL
    near, far = socket.socketpair()
    errors = []
    def serve():
        tls = SSL.Connection(server, far)
        tls.set_accept_state()
        try:
            tls.do_handshake()
            subject = tls.get_peer_certificate(as_cryptography=True).subject
            tls.sendall(subject.rfc4514_string().removeprefix("CN=").encode())
            tls.shutdown()
        except SSL.Error as error:
            errors.append(str(error))
        finally:
            far.close()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        tls = connect(client, near, host)
        tls.do_handshake()
        return [tls.recv(100).decode(), tls.get_protocol_version_name()]
    except SSL.Error as error:
        return "error: " + str(error)
    finally:
        near.close()
        thread.join()

def attempt(work):
    try:
        return work()
    except TpmMtlsError as error:
        return [type(error).__name__, str(error), error.hint]

results = []
"""


@dataclass(frozen=True)
class Given:
    """What the program gets: TCTI string and identities as key, certificate, trust."""

    tcti: str
    client: tuple[str, str, str]
    server: tuple[str, str, str]


def _triple(identity: Identity) -> tuple[str, str, str]:
    return (str(identity.key), str(identity.certificate), str(identity.trust))


def run(given: Given, work: str, environment: dict[str, str] | None = None) -> list[object]:
    """The list ``results`` that ``work`` has filled."""
    program = _PROGRAM + textwrap.dedent(work) + "\nprint(json.dumps(results))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, json.dumps(asdict(given))],
        env=dict(os.environ) | (environment or {}),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = json.loads(done.stdout)
    assert isinstance(results, list)
    return results


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


def given_for(tpm: SimulatedTpm, ca: TestCa, algorithm: str = "ecc-p256", authorization: str | None = None) -> Given:
    key = make_key(tpm, ca.folder, algorithm, authorization=authorization)
    client = ca.identity(key.reference, key.public_key, "device")
    return Given(tpm.tcti, _triple(client), _triple(ca.software_identity("localhost")))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_tss2_key_authenticates_in_both_versions(algorithm: str, tpm: SimulatedTpm, ca: TestCa) -> None:
    work = """
        for version in (V1_3, V1_2):
            client = context(minimum_version=version)
            server = context("server", minimum_version=version, server_side=True)
            for each in (client, server):
                each.set_max_proto_version(int(version))
            results.append(shake(client, server))
            results.append(shake(client, server, host="other.example"))
    """
    results = run(given_for(tpm, ca, algorithm), work)
    assert results[0] == ["device", "TLSv1.3"]
    assert results[2] == ["device", "TLSv1.2"]
    for refused in (results[1], results[3]):
        assert "certificate verify failed" in str(refused)


def test_a_server_with_a_tpm_key(tpm: SimulatedTpm, ca: TestCa) -> None:
    work = """
        tpm_server = context(server_side=True)
        client = context("server")
        results.append(shake(client, tpm_server, host="device"))
        results.append(shake(client, tpm_server, host="localhost"))
    """
    results = run(given_for(tpm, ca), work)
    assert results[0] == ["localhost", "TLSv1.3"]
    assert "certificate verify failed" in str(results[1])


def test_names_and_addresses(tpm: SimulatedTpm, ca: TestCa) -> None:
    work = """
        client, server = context("client"), context("server", server_side=True)
        for host in ("localhost", "127.0.0.1", "::1", "127.0.0.2", "device"):
            results.append(shake(client, server, host=host))
        for host in ("", "b\\u00fccher.example", "a\\0b"):
            results.append(attempt(lambda: shake(client, server, host=host)))
        from OpenSSL import SSL
        def careless(context, connection, host):
            tls = SSL.Connection(context, connection)
            tls.set_connect_state()
            return tls
        results.append(shake(client, server, connect=careless))
    """
    software = _triple(ca.software_identity("device"))
    results = run(Given(tpm.tcti, software, _triple(ca.software_identity("localhost"))), work)
    assert results[:3] == [["device", "TLSv1.3"]] * 3
    for refused in (*results[3:5], results[8]):
        assert "certificate verify failed" in str(refused)
    for refused in results[5:8]:
        assert isinstance(refused, list)
        assert refused[0] == "UsageError"
        assert "not a host name" in refused[1]


def test_strangers_are_refused_on_both_sides(tpm: SimulatedTpm, ca: TestCa, tmp_path: Path) -> None:
    stranger = TestCa(tmp_path, "stranger")
    work = """
        results.append(shake(context("client"), context("server", server_side=True)))
    """
    ours, theirs = ca.software_identity("device"), stranger.software_identity("localhost")
    results = run(Given(tpm.tcti, _triple(ours), _triple(theirs)), work)
    assert "certificate verify failed" in str(results[0])


def test_authorization_values(tpm: SimulatedTpm, ca: TestCa) -> None:
    work = """
        results.append(attempt(context))
        results.append(attempt(lambda: context(authorization=Secret(b"wrong"))))
        results.append(shake(context(authorization=Secret(b"right")), context("server", server_side=True)))
    """
    results = run(given_for(tpm, ca, authorization="right"), work)
    assert [str(result[0]) for result in results[:2] if isinstance(result, list)] == ["AuthorizationError"] * 2
    assert results[2] == ["device", "TLSv1.3"]


def test_an_encrypted_software_key_needs_no_tpm(ca: TestCa, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    write_software_key(tmp_path / "k.pem", key, b"secret")
    client = ca.identity(KeyFile(tmp_path / "k.pem"), key.public_key(), "soft")
    work = """
        import cryptography.hazmat.bindings._rust
        server = context("server", server_side=True)
        results.append(shake(context(authorization=Secret(b"secret")), server))
        results.append(attempt(context))
    """
    given = Given("swtpm:host=127.0.0.1,port=1", _triple(client), _triple(ca.software_identity("localhost")))
    results = run(given, work)
    assert results[0] == ["soft", "TLSv1.3"]
    assert isinstance(results[1], list)
    assert results[1][0] == "UsageError"


def test_a_persistent_handle_is_refused(tpm: SimulatedTpm, ca: TestCa) -> None:
    key = make_key(tpm, ca.folder, handle=HANDLE)
    client = ca.identity(key.reference, key.public_key, "device")
    results = run(Given(tpm.tcti, _triple(client), _triple(client)), "results.append(attempt(context))")
    assert isinstance(results[0], list)
    assert results[0][:2] == ["KeyReferenceError", "pyOpenSSL cannot use handle:0x81000100: it has no OSSL_STORE"]


def test_too_late_after_cryptography(tpm: SimulatedTpm, ca: TestCa) -> None:
    given = given_for(tpm, ca)
    late = "import cryptography.hazmat.bindings._rust\nresults.append(attempt(context))"
    results = run(given, late)
    assert isinstance(results[0], list)
    assert results[0][0] == "OpensslError"
    assert "takes no provider any more" in results[0][1]
    assert "openssl-env" in results[0][2]
    configuration = ca.folder / "openssl.cnf"
    configuration.write_text("")
    results = run(given, late, {"OPENSSL_CONF": str(configuration)})
    assert isinstance(results[0], list)
    assert "pyOpenSSL cannot use the key" in results[0][1]


def test_not_too_late_in_the_environment_of_openssl_env(tpm: SimulatedTpm, ca: TestCa) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tpm_mtls", "openssl-env", "--state-dir", ca.folder, "--tcti", tpm.tcti, "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    work = """
        import cryptography.hazmat.bindings._rust
        results.append(shake(context(), context("server", server_side=True)))
    """
    assert run(given_for(tpm, ca), work, json.loads(done.stdout)) == [["device", "TLSv1.3"]]


def test_one_tpm_per_process(tpm: SimulatedTpm, ca: TestCa) -> None:
    work = """
        first = context()
        given["tcti"] = "swtpm:host=127.0.0.1,port=1"
        results.append(attempt(context))
        given["tcti"] = "nonsense"
        results.append(attempt(context))
    """
    results = run(given_for(tpm, ca), work)
    assert [str(result[0]) for result in results if isinstance(result, list)] == ["OpensslError", "TctiInvalidError"]


def test_bad_input_has_the_same_errors(tpm: SimulatedTpm, ca: TestCa) -> None:
    work = """
        import datetime
        results.append(attempt(lambda: context(clock=lambda: datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))))
        given["tcti"], tcti = "swtpm:host=127.0.0.1,port=1", given["tcti"]
        results.append(attempt(context))
        given["tcti"] = tcti
        results.append(shake(context(), context("server", server_side=True)))
    """
    results = run(given_for(tpm, ca), work)
    names = [str(result[0]) for result in results[:2] if isinstance(result, list)]
    assert names == ["CertificateNotYetValidError", "TpmUnavailableError"]
    assert results[2] == ["device", "TLSv1.3"]  # a first failure leaves the process able to try again


def test_forked_children_leave_the_parents_key(tpm: SimulatedTpm, ca: TestCa) -> None:
    work = """
        import os
        client, server = context(), context("server", server_side=True)
        if os.fork() == 0:
            sys.exit(5)
        results.append(os.waitstatus_to_exitcode(os.wait()[1]))
        results.append(shake(client, server))
        results.append("OPENSSL_CONF" in os.environ)
    """
    assert run(given_for(tpm, ca), work) == [5, ["device", "TLSv1.3"], False]
    assert tpm.handles("transient") == []
