"""A key that the TPM uses only on the machine as it was: with any TLS program, refused after a change, and again later.

The story of an update: the operator signs a policy for the machine's state, the key works; something else is measured,
the TPM refuses; the operator signs for the new state, and the same key works with the same certificate.
"""

from __future__ import annotations

import gc
import json
import os
import ssl
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from support.bound_keys import make_bound_key
from support.certificates import TestCa
from support.handshakes import handshake
from support.nginx import running_nginx
from support.policies import ZEROS, Operator, extend, pcr_policy
from support.tpm_keys import make_key
from support.tpm_trace import CommandTrace
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

PCR = 16  # for debugging: whoever may use the TPM may reset it; here it stands for those of the firmware
REQUEST = "GET / HTTP/1.0\\r\\n\\r\\n"

STDLIB = f"""
import socket, ssl, sys
port, trust, certificate, key = sys.argv[1:]
context = ssl.create_default_context(cafile=trust)
context.load_cert_chain(certificate, key)
with socket.create_connection(("localhost", port)) as plain:
    with context.wrap_socket(plain, server_hostname="localhost") as tls:
        tls.sendall(b"{REQUEST}")
        print(tls.makefile().read())
"""

PYOPENSSL = f"""
import os, socket, sys
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls.pyopenssl import pyopenssl_context, verified_connection
port, trust, certificate, key = sys.argv[1:]
context = pyopenssl_context(Identity(key=KeyFile(Path(key)), certificate=Path(certificate), trust=Path(trust)))
with socket.create_connection(("localhost", port)) as plain:
    tls = verified_connection(context, plain, "localhost")
    tls.do_handshake()
    tls.sendall(b"{REQUEST}")
    print(tls.recv(65536).decode())
    tls.close()
"""

READY = """
import sys
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context
tcti, key, certificate, trust = sys.argv[1:]
identity = Identity(key=parse_key_reference(key), certificate=Path(certificate), trust=Path(trust))
client_context(identity, tcti=tcti, relay="always")
"""


@dataclass(frozen=True)
class Device:
    """A machine in whose ``folder`` are a key, made for ``operator``'s policies, and its certificate."""

    tpm: SimulatedTpm
    folder: Path
    operator: Operator
    identity: Identity

    def approve_the_present_state(self, version: int) -> None:
        """The operator signs for the machine as it is now, and the policy is installed."""
        state = str(self.folder / f"state-{version}.json")
        signed = str(self.folder.parent / f"version-{version}.signed-policy.json")
        on_tpm = ("--tcti", self.tpm.tcti)
        _tpm_mtls("policy", "record", "--pcrs", f"sha256:{PCR}", "--out", state, *on_tpm)
        _tpm_mtls(
            *("policy", "sign", "--signer", str(self.operator.key_file), "--pcr-values", state),
            *("--version", str(version), "--out", signed, *on_tpm),
        )
        _tpm_mtls("policy", "install", signed, "--key", str(self.identity.key), *on_tpm)

    def environment(self) -> dict[str, str]:
        """What ``tpm-mtls openssl-env`` says for it."""
        config = str(self.folder / "openssl.cnf")
        key = ("--config", config, "--key", str(self.identity.key), "--tcti", self.tpm.tcti)
        found: dict[str, str] = json.loads(_tpm_mtls("openssl-env", *key, "--json").stdout)
        return found

    def request(self, program: str, port: int) -> subprocess.CompletedProcess[str]:
        """A request to nginx at ``port`` with the key, by ``program``."""
        trust, certificate, key = str(self.identity.trust), str(self.identity.certificate), str(self.identity.key)
        url = f"https://localhost:{port}/"
        own = {
            "tpm-mtls": ["client", "get", url, "--key", key, "--cert", certificate, "--trust", trust],
            "pyOpenSSL": ["-c", PYOPENSSL, str(port), trust, certificate, key],
        }
        others = {
            "stdlib": [sys.executable, "-c", STDLIB, str(port), trust, certificate, key],
            "curl": ["curl", "-sS", "--cacert", trust, "--cert", certificate, "--key", key, url],
            "openssl": [
                *("openssl", "s_client", "-connect", f"localhost:{port}", "-CAfile", trust, "-verify_return_error"),
                *("-cert", certificate, "-cert_chain", certificate, "-key", key, "-quiet"),
            ],
        }
        if program in own:
            prefix = [sys.executable, "-m", "tpm_mtls"] if program == "tpm-mtls" else [sys.executable]
            return _run([*prefix, *own[program]], {"TPM_MTLS_TCTI": self.tpm.tcti})
        return _run(others[program], self.environment())


def _run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    return subprocess.run(
        command,
        env=environment | variables,
        input=REQUEST.replace("\\r", "\r").replace("\\n", "\n"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _tpm_mtls(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tpm_mtls", *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def port(ca: TestCa, tmp_path: Path) -> Iterator[int]:
    """nginx, which wants client certificates of the CA."""
    with running_nginx(tmp_path / "nginx", ca.software_identity("localhost")) as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture
def device(algorithm: str, tpm: SimulatedTpm, ca: TestCa, tmp_path: Path) -> Device:
    operator = Operator(tmp_path)
    folder = tmp_path / "device"
    folder.mkdir()
    key, request = folder / "device.key.pem", folder / "device.csr"
    on_tpm = ("--tcti", tpm.tcti)
    signer = ("--policy-signer", str(operator.public_file))
    _tpm_mtls("keygen", "create", "--algorithm", algorithm, "--out", str(key), *signer, *on_tpm)
    made = Device(tpm, folder, operator, ca.identity(KeyFile(key), operator.key.public_key(), "none"))
    made.approve_the_present_state(version=1)
    _tpm_mtls("keygen", "csr", "--key", str(key), "--out", str(request), *on_tpm)
    public_key = x509.load_pem_x509_csr(request.read_bytes()).public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return replace(made, identity=ca.identity(KeyFile(key), public_key, "device-1"))


REFUSALS = {  # exit status, and what it says; only our own programs can say why
    "tpm-mtls": (4, "the key's policy is not satisfied: this machine is in none of the states that it allows"),
    "stdlib": (1, "ssl.SSLError: [SSL] EVP lib"),
    "pyOpenSSL": (1, "provider signature failure"),
    "curl": (35, "tpm2::cannot sign"),
    "openssl": (1, "tpm2::cannot sign"),
}


@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_a_key_bound_to_the_machines_state_through_an_update(device: Device, port: int) -> None:
    for program in REFUSALS:
        done = device.request(program, port)
        assert "SUCCESS|CN=device-1" in done.stdout, f"{program}: {done.stderr}"
    extend(device.tpm, PCR)
    for program, (status, reason) in REFUSALS.items():
        done = device.request(program, port)
        assert "SUCCESS" not in done.stdout
        assert (program, done.returncode) == (program, status), done.stderr
        assert reason in done.stderr, program
    device.approve_the_present_state(version=2)
    for program in REFUSALS:
        done = device.request(program, port)
        assert "SUCCESS|CN=device-1" in done.stdout, f"{program}: {done.stderr}"


@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_it_is_the_tpm_that_refuses(
    ca: TestCa, port: int, tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    key = make_bound_key(tpm, folder, pcr_policy({PCR: ZEROS}), algorithm=algorithm)
    bound = Device(tpm, folder, Operator(tmp_path), ca.identity(key.reference, key.public_key, "device-1"))
    assert "SUCCESS|CN=device-1" in bound.request("tpm-mtls", port).stdout
    extend(tpm, PCR)
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    monkeypatch.setattr(tpm, "tcti", trace.tcti)
    refused = bound.request("tpm-mtls", port)
    assert refused.returncode == 4
    assert "the key's policy is not satisfied: this machine booted something else" in refused.stderr
    assert "(TPM_RC_POLICY_FAIL, session 1, 0x99d)" in refused.stderr
    assert "tpm-mtls: hint: " in refused.stderr
    assert "Sign=0x99d" in trace.commands()
    refused = bound.request("openssl", port)
    assert refused.returncode == 1
    assert "a policy check failed" in refused.stderr


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=["1.3", "1.2"])
@pytest.mark.parametrize("handle", [0x81000100, None], ids=["handle", "file"])
@pytest.mark.parametrize("algorithm", ["ecc-p256", "rsa-2048"])
def test_one_command_for_a_full_handshake_and_none_for_a_resumed_one(
    ca: TestCa,
    tpm: SimulatedTpm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    handle: int | None,
    version: ssl.TLSVersion,
) -> None:
    """Counted by libtss2's own capture, between the relay and the TPM."""
    key = make_key(tpm, tmp_path, algorithm, handle=handle)
    device = ca.identity(key.reference, key.public_key, "device-1")
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    client = client_context(device, tcti=trace.tcti, relay="always", minimum_version=version)
    client.maximum_version = version
    server = server_context(ca.software_identity("localhost"), minimum_version=version)
    sent = []
    for resumed in (False, True, True, True):
        before = len(trace.commands())
        seen = handshake(client, server, resume=True)
        assert (seen.client, seen.resumed) == ("device-1", resumed)
        sent.append(trace.commands()[before:])
    assert sent == [["Sign"], [], [], []]
    before = len(trace.commands())
    assert not handshake(client, server).resumed
    assert trace.commands()[before:] == ["Sign"]
    del client
    gc.collect()


@pytest.mark.parametrize("handle", [0x81000100, None], ids=["handle", "file"])
def test_a_context_is_ready_after_three_commands(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handle: int | None
) -> None:
    """In every process but the first after a restart of the machine, which asks for what cannot change."""
    key = make_key(tpm, tmp_path, handle=handle)
    device = ca.identity(key.reference, key.public_key, "device-1")
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    files = (str(device.key), str(device.certificate), str(device.trust))
    sent = []
    for _ in range(2):
        trace.restart()
        _run([sys.executable, "-c", READY, trace.tcti, *files], {}).check_returncode()
        sent.append([command for command in trace.commands() if command != "FlushContext"])  # when the process ends
    assert sent[1] == ["GetCapability", "ReadPublic", *([] if handle else ["Load"])]
    assert len(sent[0]) > len(sent[1])
