"""A device whose TPM vouches for it, and the project's own CA that verifies that: for tests of both together."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cryptography import x509

from tpm_mtls.certificates import load_certificates
from tpm_mtls.tpm import open_tpm
from tpm_mtls_keygen import renew, renew_settings
from tpm_mtls_keygen.evidence import read_endorsement
from tpm_mtls_keygen.first_boot_run import run
from tpm_mtls_keygen.first_boot_settings import Outcome, Settings, World
from tpm_mtls_keygen.first_boot_steps import Wish
from tpm_mtls_pki import allow_list, approvals, audit, ek_roots, groups, records
from tpm_mtls_pki.allow_list import Entry
from tpm_mtls_pki.groups import ApprovalRule, Group

if TYPE_CHECKING:
    from pathlib import Path

    from support.authority import EstHost
    from support.tpm import SimulatedTpm
    from tpm_mtls_pki.issuance import Registrar

DEVICE = "sensor-17"
COPY = Wish(copy=True)


@dataclass(frozen=True)
class AttestedBench:
    """See the module's docstring."""

    tpm: SimulatedTpm
    registrar: Registrar
    host: EstHost
    folder: Path

    @property
    def trust(self) -> Path:
        """The CA's root certificate."""
        return self.host.folder / "root.pem"

    @property
    def settings(self) -> Settings:
        return Settings(self.folder, self.host.url, None, self.trust, wish=COPY, tcti=self.tpm.tcti)

    def run(self, world: World | None = None, **changes: Any) -> Outcome:  # noqa: ANN401 - any setting
        """One first boot, in this process; with a copy of the identity in NV, unless the wish says otherwise."""
        return run(replace(self.settings, **changes), world or World())

    def renew(self, world: World | None = None, **changes: Any) -> Outcome:  # noqa: ANN401 - any setting
        """One renewal."""
        return renew.renew(renew_settings.Settings(self.folder, tcti=self.tpm.tcti, **changes), world or World())

    def command(self, verb: str, *options: str) -> list[str]:
        """The command line without the program."""
        enrollment = ["--ca", self.host.url, "--trust", str(self.trust)] if verb == "first-boot" else []
        return ["keygen", verb, *enrollment, "--state-dir", str(self.folder), "--tcti", self.tpm.tcti, *options]

    def wipe(self) -> None:
        """The disk is new."""
        shutil.rmtree(self.folder)

    def record(self) -> dict[str, Any]:
        """``identity.json``."""
        found: dict[str, Any] = json.loads((self.folder / "identity.json").read_text())
        return found

    def leaf(self) -> x509.Certificate:
        """The certificate in use."""
        return load_certificates(self.folder / "device.cert.pem")[0]

    def files(self) -> dict[str, bytes]:
        """The content of the identity folder."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def ek_hash(self, tpm: SimulatedTpm | None = None) -> str:
        """By which the CA knows the TPM."""
        with open_tpm((tpm or self.tpm).tcti) as opened:
            return read_endorsement(opened).hash

    def allow(self, device: str | None = DEVICE, tpm: SimulatedTpm | None = None) -> None:
        """Puts the TPM on the CA's allow-list."""
        with self.registrar.authority.database.writing() as connection:
            allow_list.add(connection, [Entry(self.ek_hash(tpm), device)], now=self.registrar.clock())

    def trust_maker(self, approval: ApprovalRule = ApprovalRule.NEVER) -> None:
        """Lets the CA trust the maker of the TPM."""
        folder = self.tpm.simulator.folder / "ca"
        found = [(folder / name).read_bytes() for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem")]
        with self.registrar.authority.database.writing() as connection:
            ek_roots.add(connection, [x509.load_pem_x509_certificate(pem) for pem in found], now=self.registrar.clock())
            groups.save(connection, Group(groups.DEFAULT, approval), now=self.registrar.clock())

    def approve(self, device: str | None = None) -> None:
        """Grants the request that came first."""
        with self.registrar.authority.database.writing() as connection:
            approvals.grant(connection, 1, device=device, now=self.registrar.clock())

    def revoke(self) -> None:
        """Revokes the certificate in use."""
        with self.registrar.authority.database.writing() as connection:
            record = records.find(connection, records.serial_text(self.leaf()))
            assert record is not None
            records.revoke(connection, record, reason="keyCompromise", now=self.registrar.clock())

    def issued(self) -> list[str]:
        """The profiles of the certificates that the CA issued, sorted; without its own server's."""
        with self.registrar.authority.database.reading() as connection:
            return sorted(each.profile for each in records.listing(connection) if each.profile != "server")

    def last_audit(self) -> audit.Entry:
        """The CA's last decision."""
        with self.registrar.authority.database.reading() as connection:
            return list(audit.entries(connection))[-1]

    def assert_whole(self) -> None:
        """A certificate for the key that the TPM has, one key, nothing half done."""
        record = self.record()
        expected = {"ca.cert.pem", "device.cert.pem", "identity.json", "attestation.key.json"}
        persistent = record["key"].startswith("handle:")
        assert self.files().keys() == expected | (set() if persistent else {"device.key.pem"})
        own = [handle for handle in self.tpm.handles("persistent") if 0x81000100 <= int(handle, 16) < 0x81010000]
        assert own == ([record["key"].removeprefix("handle:")] if persistent else [])
        assert not self.run().changed  # which checks key and certificate
        self.tpm.tool(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient"),
            *("-CAfile", str(self.trust), "-untrusted", str(self.folder / "device.cert.pem")),
            str(self.folder / "device.cert.pem"),
        )
