"""A machine on which the examples run: enrolled by a real CA, a server certificate of it, and a backend."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from support.duty import fleet_backend
from support.examples import Examples
from support.fleet import Device, FleetCa, fleet_ca
from support.how_to import HowTo
from support.tpm import SimulatedTpm
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.structures.tss2_key import parse_tss2_pem
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE_HANDLE = 0x81000100
SERVER_HANDLE = 0x81000101


@dataclass(frozen=True)
class Machine:
    """The machine.

    Attributes:
        tpm: its TPM, with the keys of the device and of its servers.
        name: the device's name.
        files: the examples, with the device's key in a TSS2 PEM file.
        handles: the examples, with the device's key at a persistent handle.
        identity: the identity folder of that.
        server: the identity of its servers.
        backend: the URL of the backend.
        ca: the CA of all of them.
    """

    tpm: SimulatedTpm
    name: str
    files: Examples
    handles: Examples
    identity: Path
    server: Identity
    backend: str
    ca: FleetCa


@contextmanager
def example_machine(folder: Path) -> Iterator[Machine]:
    """The machine, while the block lasts; no example may leave anything in its TPM."""
    tpm = SimulatedTpm(folder / "tpm")
    try:
        with (
            fleet_ca(folder / "ca") as ca,
            fleet_backend(ca, folder / "backend") as backend,
            TemporaryDirectory(prefix="tpm-mtls-server-") as server_folder,
        ):
            device = Device(tpm, folder / "device", ca)
            token = folder / "token"
            ca.pki("token", "create", "--device", "sensor-17", "--out", str(token))
            done = device.first_boot("--key", "tss2", "--token-file", str(token))
            assert done.returncode == 0, done.stderr
            server = Path(server_folder)
            server.chmod(0o755)  # mosquitto enters it as another user, who may not enter the folders of the tests
            instead = _instead(device.folder, server, backend.url)
            service = _prepare(tpm, ca, server, instead)
            _persist(tpm, device.folder / "device.key.pem", DEVICE_HANDLE)
            at_handle = folder / "device-at-handle"
            shutil.copytree(device.folder, at_handle)
            record = device.record() | {"key": f"handle:{DEVICE_HANDLE:#x}"}
            (at_handle / "identity.json").write_text(json.dumps(record))
            (at_handle / "device.key.pem").unlink()
            yield Machine(
                tpm,
                record["device"],
                Examples(folder / "files", tpm.tcti, service, instead),
                Examples(folder / "handles", tpm.tcti, service, _instead(at_handle, server, backend.url)),
                at_handle,
                Identity(PersistentHandle(SERVER_HANDLE), server / "server.cert.pem", server / "ca.cert.pem"),
                backend.url,
                ca,
            )
        tpm.assert_nothing_leaked()
    finally:
        tpm.stop()


def _instead(device: Path, server: Path, backend: str) -> dict[str, str]:
    return {
        "https://backend.example": backend,
        "backend.example:443": backend.removeprefix("https://"),
        "checkHost   = backend.example": "checkHost   = localhost",
        "openssl-env": f"openssl-env --state-dir {device}",
        "load_identity()": f'load_identity(__import__("pathlib").Path("{device}"))',
        "/var/lib/tpm-mtls": str(device),
        "/etc/tpm-mtls": str(server),
    }


def _prepare(tpm: SimulatedTpm, ca: FleetCa, folder: Path, instead: dict[str, str]) -> dict[str, str]:
    """Makes key and certificate of the servers in ``folder``, as the page says, and copies the key to `SERVER_HANDLE`.

    Returns:
        the environment of a service.
    """
    unlock = f"--ca-dir {ca.folder} --passphrase file:{ca.folder.parent / 'passphrase'}"
    names = {"pki issue": f"pki issue {unlock}", "--name service.example": "--name localhost --ip 127.0.0.1"}
    here = names | {"usermod": ": usermod"} | ({} if os.geteuid() == 0 else {"chgrp mosquitto": ": chgrp"})
    page = HowTo("other-programs", tpm, folder, instead | here)
    page.run_section("The environment of a service")
    page.run_section("A key and a certificate for a server")
    page.run_section("stunnel and mosquitto")
    _persist(tpm, folder / "server.key.pem", SERVER_HANDLE)
    lines = (folder / "openssl.env").read_text().splitlines()
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


def _persist(tpm: SimulatedTpm, path: Path, handle: int) -> None:
    key = parse_tss2_pem(path.read_bytes())
    with open_tpm(tpm.tcti) as opened:
        opened.persist(opened.load(SRK_HANDLE, key.public, key.private, None), handle)
