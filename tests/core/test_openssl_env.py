"""``tpm-mtls openssl-env``, with the programs it is for."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from support.certificates import TestCa
from support.handshakes import common_name, handshake
from support.tpm_keys import make_key
from tpm_mtls.cli import main
from tpm_mtls.errors import PemError, ProviderMissingError, StorageError, TctiInvalidError, TpmUnavailableError
from tpm_mtls.tls import IdentityContext, client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tpm import SimulatedTpm
    from tpm_mtls.identity import Identity

HANDLE = 0x81000100


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


@pytest.fixture
def identity(ca: TestCa, tpm: SimulatedTpm) -> Identity:
    key = make_key(tpm, ca.folder)
    return ca.identity(key.reference, key.public_key, "localhost")


@pytest.fixture
def environment(tpm: SimulatedTpm, state_dir: Path) -> dict[str, str]:
    """This process's environment with what the command prints for a shell, as a shell understands it."""
    printed = call("--state-dir", str(state_dir), "--tcti", tpm.tcti)
    shell = subprocess.run(["sh", "-c", f"{printed}\nenv -0"], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)


def call(*arguments: str) -> str:
    outcome = CliRunner().invoke(main, ["openssl-env", *arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@contextmanager
def serving(context: IdentityContext) -> Iterator[int]:
    """A server on the loopback address for one HTTP request, at the port; it answers with the client's name."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(4096)
            body = f"hello {common_name(tls)}\n".encode()
            tls.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_the_three_variables_and_the_configuration(tpm: SimulatedTpm, state_dir: Path) -> None:
    variables = json.loads(call("--state-dir", str(state_dir), "--tcti", tpm.tcti, "--json"))
    assert variables["OPENSSL_CONF"] == str(state_dir / "openssl.cnf")
    assert variables["TPM2OPENSSL_TCTI"] == tpm.tcti
    assert Path(variables["OPENSSL_MODULES"], "tpm2.so").exists()
    text = (state_dir / "openssl.cnf").read_text()
    assert "[default]" not in text
    assert text.index("default =") < text.index("tpm2 =")
    shell = call("--state-dir", str(state_dir), "--tcti", tpm.tcti)
    assert shell.splitlines() == [f"export {name}={value}" for name, value in variables.items()]


def test_a_second_run_writes_nothing(tpm: SimulatedTpm, tmp_path: Path) -> None:
    configuration = tmp_path / "with space.cnf"
    first = call("--config", str(configuration), "--tcti", tpm.tcti)
    assert f"OPENSSL_CONF='{configuration}'" in first
    before = configuration.stat()
    assert call("--config", str(configuration), "--tcti", tpm.tcti) == first
    assert configuration.stat().st_ino == before.st_ino
    configuration.write_text("something else\n")
    call("--config", str(configuration), "--tcti", tpm.tcti)
    assert "tpm2_sect" in configuration.read_text()


def test_bad_input(tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = str(tmp_path / "openssl.cnf")
    with pytest.raises(TctiInvalidError, match="not a TCTI string"):
        call("--config", configuration, "--tcti", "nonsense")
    with pytest.raises(TpmUnavailableError, match="there is no TPM at /dev/tpm-absent"):
        call("--config", configuration, "--tcti", "device:/dev/tpm-absent")
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    with pytest.raises(ProviderMissingError, match="there is no tpm2 provider"):
        call("--config", configuration, "--tcti", tpm.tcti)
    monkeypatch.delenv("OPENSSL_MODULES")
    assert not (tmp_path / "openssl.cnf").exists()
    with pytest.raises(StorageError, match="no such file or directory"):
        call("--config", str(tmp_path / "missing" / "openssl.cnf"), "--tcti", tpm.tcti)
    (tmp_path / "openssl.cnf").write_bytes(b"x" * 70_000)
    with pytest.raises(PemError, match="larger than"):
        call("--config", configuration, "--tcti", tpm.tcti)


def test_the_help_shows_how() -> None:
    text = call("--help")
    assert 'eval "$(tpm-mtls openssl-env)"' in text
    for name in ("OPENSSL_CONF", "OPENSSL_MODULES", "TPM2OPENSSL_TCTI"):
        assert f"env {name};" in text


def test_curl_uses_the_key(identity: Identity, ca: TestCa, environment: dict[str, str], tpm: SimulatedTpm) -> None:
    with serving(server_context(ca.software_identity("localhost"))) as port:
        command = [
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "--cacert",
            str(identity.trust),
            "--cert",
            str(identity.certificate),
        ]
        done = subprocess.run(
            [*command, "--key", str(identity.key), f"https://localhost:{port}/"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout == "hello localhost\n", done.stderr
    without = subprocess.run(
        [*command, "--key", str(identity.key), "https://localhost:1/"],
        env={name: value for name, value in environment.items() if name != "OPENSSL_CONF"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert without.returncode != 0
    assert tpm.handles("transient") == []


@pytest.mark.parametrize("handle", [None, HANDLE])
def test_s_client_uses_the_key(handle: int | None, ca: TestCa, environment: dict[str, str], tpm: SimulatedTpm) -> None:
    key = make_key(tpm, ca.folder, handle=handle)
    identity = ca.identity(key.reference, key.public_key, "device")
    with serving(server_context(ca.software_identity("localhost"))) as port:
        command = ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}", "-servername", "localhost"]
        files = ["-CAfile", str(identity.trust), "-cert", str(identity.certificate), "-key", str(identity.key)]
        files += ["-cert_chain", str(identity.certificate)]
        done = subprocess.run(
            [*command, *files, "-verify_return_error"],
            env=environment,
            input="GET / HTTP/1.0\r\n\r\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "hello device" in done.stdout, done.stderr


def test_s_server_uses_the_key(identity: Identity, ca: TestCa, environment: dict[str, str], tpm: SimulatedTpm) -> None:
    files = ["-CAfile", identity.trust, "-cert", identity.certificate, "-cert_chain", identity.certificate]
    command = [
        "openssl",
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-key",
        str(identity.key),
        "-Verify",
        "3",
        "-naccept",
        "1",
    ]
    server = subprocess.Popen(
        [*command, *files],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with server:
        assert server.stdout is not None
        assert server.stdin is not None
        for line in server.stdout:
            if match := re.search(r"ACCEPT .*:(\d+)", line):
                break
        else:
            pytest.fail("s_server does not listen")
        client = client_context(ca.software_identity("me"))
        with (
            socket.create_connection(("127.0.0.1", int(match.group(1)))) as connection,
            client.wrap_socket(connection, server_hostname="localhost") as tls,
        ):
            server.stdin.write("hello from s_server\n")
            server.stdin.flush()
            assert tls.recv(100) == b"hello from s_server\n"
        server.stdin.close()
        server.stdout.read()
    assert tpm.handles("transient") == []


def test_our_own_programs_work_in_that_environment(
    identity: Identity, ca: TestCa, environment: dict[str, str], tpm: SimulatedTpm
) -> None:
    """The provider is then loaded twice: by OpenSSL's configuration, and in our own library context."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.handshakes import handshake
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context, server_context
def identity(key, certificate, trust):
    return Identity(parse_key_reference(key), Path(certificate), Path(trust))
client = client_context(identity(*sys.argv[1:4]), tcti=sys.argv[7])
print(handshake(client, server_context(identity(*sys.argv[4:7]))))
"""
    triples = [
        str(part)
        for each in (identity, ca.software_identity("localhost"))
        for part in (each.key, each.certificate, each.trust)
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *triples, tpm.tcti],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "client='localhost'" in done.stdout, done.stderr
    assert handshake(client_context(identity, tcti=tpm.tcti), server_context(ca.software_identity("localhost")))
