"""A device for one test of first boot: a simulated TPM, an identity folder, and a CA that may lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tpm_mtls_keygen.first_boot_run import run
from tpm_mtls_keygen.first_boot_settings import Outcome, Settings, World
from tpm_mtls_keygen.first_boot_steps import Wish

if TYPE_CHECKING:
    from pathlib import Path

    from support.lying_ca import LyingCa
    from support.tpm import SimulatedTpm

DEVICE = "sensor-17"


@dataclass(frozen=True)
class Bench:
    """See the module's docstring."""

    tpm: SimulatedTpm
    ca: LyingCa
    folder: Path
    token_file: Path

    @property
    def settings(self) -> Settings:
        return Settings(self.folder, self.ca.url, self.token_file, self.ca.trust, tcti=self.tpm.tcti)

    def run(self, world: World | None = None, wish: Wish | None = None, **changes: Any) -> Outcome:  # noqa: ANN401 - any setting
        """One first boot, in this process."""
        return run(replace(self.settings, wish=wish or Wish(), **changes), world or World())

    def command(self, *options: str, verb: str = "first-boot") -> list[str]:
        """The command line; `DEVICE`'s token and the CA are given."""
        enrollment = ["--ca", self.ca.url, "--token-file", str(self.token_file), "--trust", str(self.ca.trust)]
        common = ["--state-dir", str(self.folder), "--tcti", self.tpm.tcti]
        return ["keygen", verb, *(enrollment if verb == "first-boot" else []), *common, *options]

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """The real command, started."""
        return subprocess.Popen(
            [sys.executable, "-m", "tpm_mtls", *self.command(*options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")},
        )

    def own_handles(self) -> list[str]:
        """The TPM's persistent handles without the storage root key's."""
        return [handle for handle in self.tpm.handles("persistent") if handle != "0x81000001"]

    def listing(self) -> dict[str, str]:
        """Files of the identity folder and their modes."""
        return {path.name: f"{path.stat().st_mode & 0o7777:04o}" for path in sorted(self.folder.iterdir())}

    def record(self) -> dict[str, Any]:
        """``identity.json``."""
        found: dict[str, Any] = json.loads((self.folder / "identity.json").read_text())
        return found

    def assert_enrolled(self) -> None:
        """One certificate in use, one key in the TPM, complete files with the right modes; openssl agrees."""
        record = self.record()
        persistent = record["key"].startswith("handle:")
        assert self.own_handles() == ([record["key"].removeprefix("handle:")] if persistent else [])
        expected = {"ca.cert.pem": "0644", "device.cert.pem": "0644", "identity.json": "0640"}
        assert self.listing() == expected | ({} if persistent else {"device.key.pem": "0600"})
        verified = self.tpm.tool(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient"),
            *("-CAfile", str(self.folder / "ca.cert.pem"), "-untrusted", str(self.folder / "device.cert.pem")),
            str(self.folder / "device.cert.pem"),
        )
        assert verified.stdout.endswith("OK\n")
        assert self.certificate_key() == self.tpm_key(record["key"])

    def certificate_key(self) -> str:
        """The public key in the certificate, as openssl prints it."""
        return self.tpm.tool("openssl", "x509", "-in", str(self.folder / "device.cert.pem"), "-noout", "-pubkey").stdout

    def tpm_key(self, reference: str) -> str:
        """The public key that the TPM has, as tpm2-tools say."""
        out = self.folder.parent / "public.pem"
        if reference.startswith("handle:"):
            self.tpm.tool("tpm2_readpublic", "-c", reference.removeprefix("handle:"), "-f", "pem", "-o", str(out))
        else:
            work = self.folder.parent / "loaded"
            work.mkdir(exist_ok=True)
            key = str(self.folder / reference)
            self.tpm.tool("tpm2_load", "-r", key, "-c", str(work / "key.ctx"))
            self.tpm.tool("tpm2_readpublic", "-c", str(work / "key.ctx"), "-f", "pem", "-o", str(out))
            self.tpm.flush()
        return out.read_text()
