"""docs/reference/configuration.md says of files and modes what is so."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from support.attested import COPY, AttestedBench
from support.authority import PASSPHRASE, est_host, make_ca
from support.named_commands import ROOT
from tpm_mtls_keygen.first_boot_folder import KeyPlace
from tpm_mtls_pki.authority import open_authority
from tpm_mtls_pki.clock import utc_now
from tpm_mtls_pki.issuance import Registrar

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

PAGE = (ROOT / "docs" / "reference" / "configuration.md").read_text()


def said(before: str) -> dict[str, str]:
    """Modes by file, from the table that follows the text ``before``."""
    table = PAGE.partition(before)[2].partition("\n\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (\d{4}) \|", table, re.MULTILINE))


def there(folder: Path) -> dict[str, str]:
    """Modes by file, of what is in ``folder``; locks are not looked at."""
    found = {path.name: f"{stat.S_IMODE(path.stat().st_mode):04o}" for path in folder.iterdir()}
    return {name: mode for name, mode in found.items() if not name.startswith(".") and not name.endswith(".lock")}


def test_the_ca_s_folder_is_as_it_says(tmp_path: Path) -> None:
    modes = said("The CA's folder is")
    assert modes["root.key.pem"] == "0600"
    assert there(make_ca(tmp_path / "ca")) == modes


def test_the_identity_folder_is_as_it_says(tpm: SimulatedTpm, tmp_path: Path) -> None:
    modes = said("The identity folder is")
    with open_authority(make_ca(tmp_path / "ca")) as authority:
        registrar = Registrar(authority, authority.unlock(PASSPHRASE), utc_now)
        with est_host(registrar) as host:
            bench = AttestedBench(tpm, registrar, host, tmp_path / "state")
            bench.allow()
            bench.run(wish=replace(COPY, place=KeyPlace.TSS2))
    found = there(bench.folder)
    assert found.keys() >= {"identity.json", "device.key.pem", "device.cert.pem", "ca.cert.pem", "attestation.key.json"}
    assert {name: modes.get(name) for name in found} == found
