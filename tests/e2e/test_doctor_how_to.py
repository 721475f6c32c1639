"""docs/how-to/when-something-fails.md: its commands as they stand, on a device that is well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import tpm_mtls.doctor
from support.how_to import HowTo
from support.https_server import HttpsServer, fixed, http
from support.patient import Patient

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

PAGE = "when-something-fails"


def test_the_page_is_as_it_says(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Patient(tpm, tmp_path)
    with HttpsServer(device.server_context(), fixed(http(200))) as server:
        device.change_record(ca_url=server.url(""))
        instead = {
            "tpm-mtls doctor": f"tpm-mtls doctor --state-dir {device.folder}",
            "/var/lib/tpm-mtls": str(device.folder),
            "https://ca.example:8443": server.url(""),
            "https://backend.example:9443/": server.url(),
        }
        page = HowTo(PAGE, tpm, tmp_path, instead)
        (well,) = page.run_section("Ask the doctor")
        assert well.stdout.splitlines()[-1] == "no problems, 1 warning"
        assert "identity.key            the device's key signs" in well.stdout
        (servers,) = page.run_section("A server that does not answer")
        for role in ("ca", "backend"):
            assert re.search(rf"^ok +network.{role} ", servers.stdout, re.MULTILINE), servers.stdout
        (script,) = page.run_section("In a script")
        assert script.stdout == "identity.folder\n"
        (packed,) = page.run_section("For whoever helps you")
        assert "tpm-mtls-doctor/doctor.txt" in packed.stdout
        (explained,) = page.run_section("A number that nobody explains")
        assert "TPM_RC_BAD_AUTH" in explained.stdout


def test_each_finding_is_on_the_page_and_nothing_else(tmp_path: Path, tpm: SimulatedTpm) -> None:
    page = HowTo(PAGE, tpm, tmp_path)
    table = page.text.partition("## What the names mean")[2].partition("\n## ")[0]
    listed = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`([^`]+)`", line.partition("|")[2].partition("|")[0])
    }
    sources = "".join(path.read_text() for path in Path(tpm_mtls.doctor.__file__).parent.glob("*.py"))
    known = set(re.findall(r'"((?:tpm|identity|openssl)\.[a-z-]+|clock|configuration)"', sources))
    assert listed == known | {"tpm.leaked-objects", "tpm.leaked-sessions", "network.ca", "network.backend"}
