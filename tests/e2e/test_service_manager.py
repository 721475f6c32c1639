"""Server and CA as systemd runs them: by the command of their unit, with readiness and watchdog."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.device_ca import DeviceCa
from support.units import FOLDER, command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """As much of a service manager as a unit of ``Type=notify`` speaks to."""

    def __init__(self, receiver: socket.socket, address: Path) -> None:
        self._receiver = receiver
        self._address = address

    @contextlib.contextmanager
    def running(self, words: list[str], credentials: Path) -> Iterator[subprocess.Popen[str]]:
        """Starts the command of a unit, which is to end well."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
        environment |= {
            "NOTIFY_SOCKET": str(self._address),
            "WATCHDOG_USEC": "200000",
            "CREDENTIALS_DIRECTORY": str(credentials),
        }
        program = [sys.executable, "-m", "tpm_mtls", *words[1:]]
        with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
                process.terminate()
                assert process.wait(20) == 0
            finally:
                process.kill()

    def hears(self, beginning: str) -> str:
        """The next message with that beginning."""
        while not (message := self._receiver.recv(500).decode()).startswith(beginning):
            pass
        return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(30)
        yield Manager(receiver, tmp_path / "notify")


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    (tmp_path / "credentials").mkdir()
    return tmp_path / "credentials"


def with_values(words: list[str], values: dict[str, str]) -> list[str]:
    """``words`` with other values of the options named."""
    changed = list(words)
    for option, value in values.items():
        changed[changed.index(option) + 1] = value
    return changed


def test_the_server_of_its_unit(manager: Manager, credentials: Path, tmp_path: Path) -> None:
    ca = DeviceCa(tmp_path / "ca")
    server = ca.server()
    key = credentials / "server.key.pem"
    key.write_bytes((tmp_path / "ca" / str(server.key)).read_bytes())
    values = {"--listen": "127.0.0.1:0", "--cert": str(server.certificate), "--key": str(key)}
    values |= {"--client-ca": str(server.trust), "--crl": str(ca.crl_file), "--database": f"sqlite:///{tmp_path}/t.db"}
    words = with_values(command(FOLDER / "tpm-mtls-server.service"), values)
    with manager.running(words, credentials) as process:
        assert manager.hears("READY=1").startswith("READY=1\nSTATUS=serving https://127.0.0.1:")
        assert manager.hears("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        assert manager.hears("RELOADING=1")
        assert manager.hears("READY=1") == "READY=1"
        process.terminate()
        assert manager.hears("STOPPING=1")


def test_the_ca_of_its_unit(manager: Manager, credentials: Path, tmp_path: Path) -> None:
    passphrase = credentials / "ca-passphrase"
    passphrase.write_text("correct horse\n")
    passphrase.chmod(0o440)  # as where systemd uses an access control list
    making = [sys.executable, "-m", "tpm_mtls", "pki", "init", "--ca-dir", str(tmp_path / "ca"), "--name", "Example"]
    making += ["--passphrase", "credential:ca-passphrase", "--json"]
    environment = os.environ | {"CREDENTIALS_DIRECTORY": str(credentials)}
    done = subprocess.run(making, env=environment, capture_output=True, check=True, timeout=30)
    assert json.loads(done.stdout)
    values = {"--ca-dir": str(tmp_path / "ca"), "--listen": "127.0.0.1:0"}
    words = with_values(command(FOLDER / "tpm-mtls-pki.service"), values)
    with manager.running(words, credentials) as process:
        assert manager.hears("READY=1").startswith("READY=1\nSTATUS=serving https://127.0.0.1:")
        assert manager.hears("WATCHDOG=1")
        process.terminate()
        assert manager.hears("STOPPING=1")
