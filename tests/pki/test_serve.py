"""``pki serve`` as a process, and the EST clients of other people against it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tpm_mtls import est
from tpm_mtls.certificates import load_certificates, parse_certificates
from tpm_mtls.device_names import device_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Shell:
    """A working folder with a CA in ``ca`` and programs run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, status: int = 0, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, timeout=60, check=False, env=os.environ | (env or {})
        )
        assert done.returncode == status, done.stderr.decode()
        return done.stdout.decode()

    def pki(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "tpm_mtls", "pki", *arguments, "--ca-dir", "ca").strip()

    @contextmanager
    def serving(self, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """The URL and the process of a running server; it must end well."""
        command = [*(sys.executable, "-m", "tpm_mtls", "pki", "serve", "--ca-dir", "ca"), *options]
        command += ["--passphrase", "file:passphrase"]
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.close()
            assert process.wait(20) == 0, (self.folder / "log").read_text()


@pytest.fixture
def shell(ca_dir: Path, tmp_path: Path) -> Shell:
    assert ca_dir.parent == tmp_path
    (tmp_path / "passphrase").write_text("correct horse\n")
    (tmp_path / "passphrase").chmod(0o600)
    return Shell(tmp_path)


def curl_enroll(shell: Shell, url: str, *authorization: str, path: str = est.SIMPLE_ENROLL) -> str:
    return shell.run(
        *("curl", "-sS", "--cacert", "ca/root.pem", *authorization, "-H", "Content-Type: application/pkcs10"),
        *("--data-binary", "@dev.b64", "-o", "answer", "-w", "%{http_code}", f"{url}{path}"),
    )


def test_curl_and_openssl_enroll_and_renew(shell: Shell) -> None:
    """The whole of EST with two stock tools; then a revocation ends it."""
    with shell.serving() as (url, _):
        assert url.startswith("https://127.0.0.1:")
        shell.run("curl", "-sS", "--cacert", "ca/root.pem", "-o", "cacerts", f"{url}{est.CACERTS}")
        (shell.folder / "cacerts.der").write_bytes(base64.b64decode((shell.folder / "cacerts").read_bytes()))
        printed = shell.run("openssl", "pkcs7", "-inform", "DER", "-in", "cacerts.der", "-print_certs")
        root, issuing = (load_certificates(shell.folder / "ca" / name)[0] for name in ("root.pem", "issuing.pem"))
        assert set(parse_certificates(printed.encode(), name="openssl")) == {root, issuing}

        token = shell.pki("token", "create", "--device", "dev-1")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "dev.key", "-subj", "/CN=x"]
        shell.run("openssl", "req", *new, "-outform", "DER", "-out", "dev.der")
        shell.run("openssl", "base64", "-A", "-in", "dev.der", "-out", "dev.b64")
        assert curl_enroll(shell, url, "-u", "dev-1:wrong") == "401"
        assert curl_enroll(shell, url, "-u", f"dev-1:{token}") == "200"
        read = ["openssl", "pkcs7", "-inform", "DER", "-in", "answer.der", "-print_certs", "-out", "dev.pem"]
        (shell.folder / "answer.der").write_bytes(base64.b64decode((shell.folder / "answer").read_bytes()))
        shell.run(*read)
        verify = ["-x509_strict", "-purpose", "sslclient", "-CAfile", "ca/root.pem", "-untrusted", "ca/issuing.pem"]
        assert shell.run("openssl", "verify", *verify, "dev.pem") == "dev.pem: OK\n"
        client = ["--cert", "dev.pem", "--key", "dev.key"]
        assert curl_enroll(shell, url, *client, path=est.SIMPLE_REENROLL) == "200"
        shell.pki("revoke", "--device", "dev-1")
        assert curl_enroll(shell, url, *client, path=est.SIMPLE_REENROLL) == "403"
    lines = [json.loads(line.partition("est_server: ")[2]) for line in _log(shell) if "est_server: " in line]
    assert [line["decision"] for line in lines] == ["refused", "issued", "issued", "refused"]
    assert token not in "".join(_log(shell))


@pytest.mark.parametrize("algorithm", ["rsa", "ecdsa"])
def test_strongswan_enrolls_and_renews(shell: Shell, algorithm: str) -> None:
    """StrongSwan's pki (package libstrongswan-standard-plugins has its elliptic curves); TLS 1.2 on request."""
    size = {"rsa": "2048", "ecdsa": "256"}[algorithm]
    with shell.serving("--tls12") as (url, _):
        shell.run("pki", "--estca", "--url", url, "--cacert", "ca/root.pem", "--caout", "out.pem", "--outform", "pem")
        assert load_certificates(shell.folder / "out.pem") == load_certificates(shell.folder / "ca" / "root.pem")
        (shell.folder / "key.pem").write_text(
            shell.run("pki", "--gen", "-t", algorithm, "-s", size, "--outform", "pem")
        )
        options = ["--type", "priv", "--in", "key.pem", "--dn", "CN=ignored", "--outform", "pem"]
        (shell.folder / "req.pem").write_text(shell.run("pki", "--req", *options))
        token = shell.pki("token", "create", "--device", "dev-2")
        enroll = ["pki", "--est", "--url", url, "--in", "req.pem", "--cacert", "ca/root.pem", "--outform", "pem"]
        (shell.folder / "cert.pem").write_text(shell.run(*enroll, "--userpass", f"dev-2:{token}"))
        (shell.folder / "cert2.pem").write_text(shell.run(*enroll, "--cert", "cert.pem", "--key", "key.pem"))
        first, second = (load_certificates(shell.folder / name)[0] for name in ("cert.pem", "cert2.pem"))
        assert first != second
        assert device_name(first) == device_name(second) == "dev-2"


def test_strongswan_speaks_tls_1_3_too(shell: Shell) -> None:
    (shell.folder / "strongswan.conf").write_text("libtls {\n  version_max = 1.3\n}\npki {\n  load_modular = no\n}\n")
    with shell.serving() as (url, _):
        shell.run(
            *("pki", "--estca", "--url", url, "--cacert", "ca/root.pem", "--caout", "out.pem", "--outform", "pem"),
            env={"STRONGSWAN_CONF": str(shell.folder / "strongswan.conf")},
        )
    assert (shell.folder / "out.pem").exists()


def test_sighup_is_harmless_and_sigterm_ends(shell: Shell) -> None:
    with shell.serving("--json") as (line, process):
        url = json.loads(line)["url"]
        process.send_signal(signal.SIGHUP)
        assert shell.run(
            "curl", "-sS", "--cacert", "ca/root.pem", "-o", "x", "-w", "%{http_code}", f"{url}{est.CACERTS}"
        )
        assert process.poll() is None
    assert any("nothing to reload" in line for line in _log(shell))


def test_a_wrong_passphrase_serves_nothing(shell: Shell) -> None:
    (shell.folder / "passphrase").write_text("wrong")
    command = [*(sys.executable, "-m", "tpm_mtls", "pki", "serve"), "--ca-dir", "ca", "--passphrase", "file:passphrase"]
    done = subprocess.run(command, cwd=shell.folder, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert "the passphrase is wrong" in done.stderr


def _log(shell: Shell) -> list[str]:
    return (shell.folder / "log").read_text().splitlines()
