"""docs/how-to/check-the-tpm.md, renew-and-rotate.md and without-a-tpm.md: their commands as they stand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from support.duty import enrolled_device
from support.fleet import Device, FleetCa, fleet_ca
from support.how_to import FOLDER, HowTo
from tpm_mtls.attestation.health import CautionKind, FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.tpm import SimulatedTpm


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetCa]:
    with fleet_ca(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


@pytest.fixture
def device(make_tpm: Callable[..., SimulatedTpm], ca: FleetCa, tmp_path: Path) -> Device:
    return enrolled_device(make_tpm(ek_certificates=True), ca, tmp_path / "identity")


def how_to(name: str, device: Device, folder: Path) -> HowTo:
    """The how-to on this machine, where the folders are others."""
    folders = f"--state-dir {device.folder} --run-dir {folder}/run"
    state = f"--state-dir {device.folder}"
    return HowTo(
        name,
        device.tpm,
        folder,
        {
            "agent check": f"agent check {folders}",
            "test sign": f"test sign {state}",
            "test quote": f"test quote {state}",
            "tpm pcrs": f"tpm pcrs {state}",
            "save-info": f"save-info {state}",
            "keygen renew": f"keygen renew {state}",
            "keygen restore": f"keygen restore {state}",
            "keygen status": f"keygen status {state}",
            "/run/tpm-mtls": f"{folder}/run",
            "/var/lib/tpm-mtls": str(device.folder),
        },
    )


def test_the_tpm_is_described_tried_and_checked(device: Device, tmp_path: Path) -> None:
    page = how_to("check-the-tpm", device, tmp_path)
    described, saved = page.run_section("Which TPM it is")
    assert "specification\tTPM 2.0" in described.stdout
    assert json.loads((tmp_path / "tpm.json").read_text())["pcrs"]["quote"]["attestation_key"]["of_the_device"]
    assert saved.stdout == "tpm.json\n"

    tried, compared = page.run_section("Whether it does what it is needed for")
    assert tried.stdout.startswith(f"the TPM can use the key {device.record()['key']}\t")
    assert "sig: " in compared.stdout, "tpm2_checkquote says what it has checked"

    (checked,) = page.run_section("Every hour")
    assert checked.stdout.startswith("TPM healthy")
    assert "tpm_mtls_" in checked.stdout
    assert not (tmp_path / "run" / "maintenance").exists()


def test_a_certificate_is_renewed_its_key_exchanged_and_the_file_brought_back(device: Device, tmp_path: Path) -> None:
    page = how_to("renew-and-rotate", device, tmp_path)
    before = device.certificate()
    (renewed,) = page.run_section("By hand, or by a timer")
    assert device.certificate() != before
    assert renewed.stdout

    key, handle = device.record()["key_name"], device.record()["key"]
    (rotated,) = page.run_section("With a new key")
    assert device.record()["key_name"] != key
    assert f"the TPM can use the key {handle}" in rotated.stdout

    certificate = device.certificate()
    (restored,) = page.run_section("A certificate that was lost")
    assert device.certificate() == certificate
    assert restored.stdout


@pytest.mark.skipif(Path("/dev/tpmrm0").exists(), reason="this machine has a TPM")
def test_a_machine_without_a_tpm_gets_a_software_key_where_that_is_asked_for(
    tpm: SimulatedTpm, ca: FleetCa, tmp_path: Path
) -> None:
    ca.pki("token", "create", "--device", "sensor-17", "--out", str(tmp_path / "sensor-17.token"))
    shutil.copy(ca.root, tmp_path / "root.pem")
    state = f"--state-dir {tmp_path}/identity"
    instead = {"https://ca.example:8443": ca.url, "first-boot": f"first-boot {state}", "status": f"status {state}"}
    page = HowTo("without-a-tpm", tpm, tmp_path, instead)
    page.run_section("A machine that has none", TPM_MTLS_TCTI="device:/dev/tpmrm0")
    record = json.loads((tmp_path / "identity" / "identity.json").read_text())
    assert (record["device"], record["is_tpm"]) == ("sensor-17", False)
    assert (tmp_path / "identity" / "device.key.pem").stat().st_mode & 0o777 == 0o600


def test_each_reason_and_each_warning_is_explained() -> None:
    rows = re.findall(
        r"^\| (`.*?) \|", (FOLDER / "check-the-tpm.md").read_text().partition("## When it fails")[2], re.MULTILINE
    )
    explained = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(explained) == sorted([*get_args(FailureKind), *get_args(CautionKind)])
