"""A CA and devices with TPMs, as their owners run them: by commands, a device's in processes of their own."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpm_mtls.cli import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

_OBJECTS = ("--transient-object", "--loaded-session", "--saved-session")


def _environment() -> dict[str, str]:
    """What a program gets: no TPM but the one it is told of. Read late, as folders differ in what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENSSL_", "TPM"))}


def tpm_mtls(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tpm_mtls", *words],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def administers(*words: str) -> str:
    """Runs the command of an administrator, who needs no TPM, in this process; its output.

    As a program of its own it would take longer to begin than to answer.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(words)
    assert status == 0, err.getvalue()
    return out.getvalue()


@dataclass(frozen=True)
class FleetCa:
    """A CA that serves.

    Attributes:
        folder: its folder.
        url: where its EST server is.
    """

    folder: Path
    url: str

    def pki(self, *words: str) -> str:
        """Runs a command of ``pki``; its output."""
        return administers("pki", *words, "--ca-dir", str(self.folder))

    def trust_maker(self, tpm: SimulatedTpm) -> None:
        """Trusts the maker of ``tpm``."""
        folder = tpm.simulator.folder / "ca"
        for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem"):
            self.pki("ek-roots", "add", str(folder / name))

    def issued(self, profile: str = "device") -> list[dict[str, Any]]:
        """The certificates that it issued for that profile."""
        certificates: list[dict[str, Any]] = json.loads(self.pki("list", "--json"))["certificates"]
        return [each for each in certificates if each["profile"] == profile]

    @property
    def root(self) -> str:
        """The trust anchor."""
        return str(self.folder / "root.pem")


@contextlib.contextmanager
def fleet_ca(folder: Path, *, approval: str = "never") -> Iterator[FleetCa]:
    """A CA in the new folder ``folder`` whose first certificates are approved as ``approval`` says."""
    folder.mkdir(parents=True)
    secret = folder / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text("correct horse battery staple\n")
    made = FleetCa(folder / "ca", "")
    unlock = ("--passphrase", f"file:{secret}")
    made.pki("init", "--name", "Fleet", *unlock)
    made.pki("group", "set", "--name", "default", "--approval", approval)
    command = [sys.executable, "-m", "tpm_mtls", "pki", "serve", "--ca-dir", str(made.folder), *unlock]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            yield FleetCa(made.folder, server.stdout.readline().strip())
        finally:
            server.terminate()


@dataclass(frozen=True)
class Device:
    """A device without a secret on board.

    Attributes:
        tpm: its TPM.
        folder: its disk: the identity folder.
        ca: the CA of its fleet.
    """

    tpm: SimulatedTpm
    folder: Path
    ca: FleetCa

    def first_boot(self, *options: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs ``keygen first-boot`` to its end."""
        return tpm_mtls(*self.command(*options, url=url))

    def command(self, *options: str, url: str | None = None) -> list[str]:
        """The words of ``keygen first-boot``."""
        return ["keygen", "first-boot", "--ca", url or self.ca.url, "--trust", self.ca.root, *self._where, *options]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs another command of ``keygen`` on the identity."""
        return tpm_mtls("keygen", *words, *self._where)

    def get(self, path: str) -> subprocess.CompletedProcess[str]:
        """A request over mutual TLS with the key in the TPM."""
        return tpm_mtls("client", "get", self.ca.url + path, *self._where)

    @property
    def _where(self) -> tuple[str, ...]:
        return ("--state-dir", str(self.folder), "--tcti", self.tpm.tcti)

    def killed_first_boot(self, after: float) -> bool:
        """Starts it and cuts the power after that many seconds; whether it was still at work."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tpm_mtls", *self.command()],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        was_running = process.poll() is None
        process.kill()
        process.wait()
        self.power_cut()
        return was_running

    def power_cut(self) -> None:
        """What a reboot does to the TPM: objects and sessions that a killed program left are gone."""
        for kind in _OBJECTS:
            self.tpm.tool("tpm2_flushcontext", kind, check=False)

    def wipe(self) -> None:
        """Loses the disk."""
        shutil.rmtree(self.folder)

    def record(self) -> dict[str, Any]:
        """``identity.json``."""
        found: dict[str, Any] = json.loads((self.folder / "identity.json").read_text())
        return found

    def certificate(self) -> bytes:
        """The certificate in use."""
        return (self.folder / "device.cert.pem").read_bytes()

    def in_tpm(self) -> tuple[list[str], list[str]]:
        """Persistent handles and NV indices, without the endorsement's."""
        handles = [each for each in self.tpm.handles("persistent") if not each.lower().startswith("0x8101")]
        indices = [each for each in self.tpm.handles("nv-index") if not each.lower().startswith("0x1c")]
        return handles, indices

    def assert_enrolled(self) -> None:
        """One valid certificate in use, for the one key in the TPM; no orphan there, no leftover on the disk.

        openssl and tpm2-tools are the judges.
        """
        expected = {"attestation.key.json", "ca.cert.pem", "device.cert.pem", "identity.json"}
        assert {path.name for path in self.folder.iterdir() if not path.name.startswith(".")} == expected
        handle = self.record()["key"].removeprefix("handle:")
        handles, indices = self.in_tpm()
        assert handles == ["0x81000001", handle]
        assert indices, "the copy of the identity"
        assert all(int(index, 16) in range(0x01500000, 0x01500008) for index in indices)
        leaf = self.folder / "device.cert.pem"
        verify = ("openssl", "verify", "-x509_strict", "-CAfile", self.ca.root, "-untrusted", str(leaf))
        assert self.tpm.tool(*verify, "-purpose", "sslclient", str(leaf)).stdout.endswith("OK\n")
        public = self.folder.parent / "public.pem"
        self.tpm.tool("tpm2_readpublic", "-c", handle, "-f", "pem", "-o", str(public))
        assert self.tpm.tool("openssl", "x509", "-in", str(leaf), "-noout", "-pubkey").stdout == public.read_text()
        serial = self.tpm.tool("openssl", "x509", "-in", str(leaf), "-noout", "-serial").stdout.strip()
        known = {int(each["serial"], 16) for each in self.ca.issued() if each["state"] == "valid"}
        assert int(serial.removeprefix("serial="), 16) in known

    def attestation_certificate(self) -> bytes:
        """The attestation key's certificate, DER."""
        content = json.loads((self.folder / "attestation.key.json").read_text())
        return base64.b64decode(content["certificate"])


def measure(device: Device) -> float:
    """Seconds of an undisturbed first boot."""
    begun = time.monotonic()
    done = device.first_boot()
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begun
