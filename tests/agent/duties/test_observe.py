"""What became of a TPM, as it says itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from support.healthy_device import HANDLE, Device
from tpm_mtls.attestation_key import load_attestation_key
from tpm_mtls.life_cycle import Change, judge
from tpm_mtls.life_cycle_observed import observe
from tpm_mtls.structures import EkTemplate, ek_hash
from tpm_mtls.tpm import SRK_HANDLE, open_tpm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.life_cycle import Observed


@pytest.fixture
def device(tpm: SimulatedTpm, tmp_path: Path) -> Device:
    made = Device(tpm, tmp_path)
    known = load_attestation_key(made.folder)
    assert known is not None
    with open_tpm(tpm.tcti) as opened, opened.endorsement.use(known.ek_template) as key:
        made.record = msgspec.structs.replace(made.record, ek_sha256=ek_hash(key.public.spki or b""))
    return made


def look(device: Device, tpm: SimulatedTpm | None = None) -> Observed:
    with open_tpm((tpm or device.tpm).tcti) as opened:
        return observe(opened, device.folder, device.record)


def change(device: Device, tpm: SimulatedTpm | None = None) -> Change:
    return judge(device.record, look(device, tpm)).change


def test_the_same_tpm_is_known_without_its_endorsement_key(device: Device) -> None:
    found = look(device)
    assert (found.srk_name, found.ek_sha256, found.has_key) == (device.record.srk_name, None, True)
    assert judge(device.record, found).change is Change.SAME


def test_a_restart_is_counted(device: Device) -> None:
    device.tpm.restart()
    assert change(device) is Change.RESTARTED


def test_a_storage_root_key_that_somebody_removed_is_no_other_tpm(device: Device) -> None:
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", hex(SRK_HANDLE))
    found = look(device)
    assert (found.srk_name, found.has_key) == (None, True)
    assert judge(device.record, found).usable


def test_a_key_that_somebody_removed_is_no_other_tpm(device: Device) -> None:
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", hex(HANDLE))
    assert look(device).has_key is False
    assert change(device) is Change.SAME


def test_a_cleared_tpm_has_its_endorsement_key_still(device: Device) -> None:
    device.tpm.tool("tpm2_clear", "-c", "p")
    assert look(device).ek_sha256 == device.record.ek_sha256
    assert change(device) is Change.CLEARED


def test_another_tpm_has_another(device: Device, make_tpm: Callable[[], SimulatedTpm]) -> None:
    assert change(device, make_tpm()) is Change.SWAPPED


def test_without_an_attestation_key_the_endorsement_key_is_the_one_that_first_boot_takes(device: Device) -> None:
    with open_tpm(device.tpm.tcti) as opened, opened.endorsement.use(EkTemplate.ECC_P256) as key:
        device.record = msgspec.structs.replace(device.record, ek_sha256=ek_hash(key.public.spki or b""))
    (device.folder / "attestation.key.json").unlink()
    device.tpm.tool("tpm2_clear", "-c", "p")
    assert change(device) is Change.CLEARED


def test_something_else_in_the_storage_root_key_s_place_is_not_taken_for_one(device: Device, tmp_path: Path) -> None:
    device.tpm.tool("tpm2_clear", "-c", "p")
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
    made = ("-C", "o", "-G", "ecc256:ecdsa-sha256:null", "-a", attributes, "-c", str(tmp_path / "key.ctx"))
    device.tpm.tool("tpm2_createprimary", *made)
    device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", str(tmp_path / "key.ctx"), hex(SRK_HANDLE))
    device.tpm.flush()
    assert look(device).srk_name is None
    assert change(device) is Change.CLEARED


def test_a_key_in_a_file_is_judged_by_the_storage_root_key(tpm: SimulatedTpm, tmp_path: Path) -> None:
    device = Device(tpm, tmp_path, persistent=False)
    assert look(device).has_key is False
    assert change(device) is Change.SAME
