"""The project as users install it: what it is built into, and the installed command, from the key to a request."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.openssl.provider import modules_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from support.tpm import SimulatedTpm

ROOT = Path(__file__).parents[2]

NOUNS = ("agent", "client", "keygen", "openssl-env", "pcr", "pki", "policy", "seal", "secret", "server", "simulator")
"""Commands of all components; each loads its own modules."""

REPRODUCIBLE = {"COMPRESSION": "none", "SOURCE_DATE_EPOCH": "1700000000"}
"""What the environment says to the Debian package's builder: a date, so that it is the same each time; and haste."""


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name``, which ``make`` has filled, once for all processes that run tests; nobody changes it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds the ``wheel`` or the ``sdist`` of ``source``, without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def debian_package(factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout, built `once`."""

    def make(folder: Path) -> None:
        command = [ROOT / "packaging" / "debian" / "build.sh", folder]
        done = subprocess.run(
            command, env=os.environ | REPRODUCIBLE, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr

    (built,) = once(factory, "package", make).glob("*.deb")
    return built


class Installed:
    """An installed command, run as a user does: from another folder, with nothing of this environment."""

    def __init__(self, command: Path, folder: Path) -> None:
        self.command = command
        self.folder = folder
        kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
        self._environment = kept | {"OPENSSL_MODULES": str(modules_folder())}

    def run(self, *words: str | Path) -> str:
        """What the command prints.

        Raises:
            AssertionError: it fails.
        """
        done = subprocess.run(
            [self.command, *words],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def makes_a_device(self, tpm: SimulatedTpm) -> None:
        """A CA, a device that enrolls, and a request whose signature its TPM makes: keygen, pki, client and relay.

        Raises:
            AssertionError: some of it fails.
        """
        passphrase = self.folder / "passphrase"
        passphrase.write_text("correct horse\n")
        passphrase.chmod(0o600)
        secret = f"file:{passphrase}"
        self.run("pki", "init", "--ca-dir", "ca", "--name", "Example", "--passphrase", secret)
        self.run("pki", "token", "create", "--ca-dir", "ca", "--device", "sensor-17", "--out", "token")
        serving = [self.command, "pki", "serve", "--ca-dir", "ca", "--passphrase", secret]
        with subprocess.Popen(serving, cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, text=True) as ca:
            try:
                assert ca.stdout is not None
                url = ca.stdout.readline().strip()
                assert re.fullmatch(r"https://127\.0\.0\.1:\d+", url)
                device = ["--state-dir", "device", "--tcti", tpm.tcti]
                enrolling = ["--ca", url, "--token-file", "token", "--trust", "ca/root.pem", "--json"]
                enrolled = json.loads(self.run("keygen", "first-boot", *device, *enrolling))
                assert (enrolled["device"], enrolled["is_tpm"]) == ("sensor-17", True)
                answer = self.run("client", "get", f"{url}/.well-known/est/cacerts", *device, "--relay", "always")
                assert answer.startswith("MII")
            finally:
                ca.terminate()
                assert ca.wait(20) == 0
