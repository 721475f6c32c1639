"""A lost certificate file comes back from the TPM's NV memory, and nothing else is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from support.attested import COPY, DEVICE, AttestedBench
from support.certificates import TestCa
from support.power_cut import DIES_AT_FILE_CHANGE, TpmTap
from tpm_mtls.cli import run
from tpm_mtls.errors import CertificateExpiredError, CredentialError, IdentityError
from tpm_mtls.identity import CERTIFICATE, TRUST, load_record
from tpm_mtls_keygen.first_boot_folder import INSTALL, KeyPlace
from tpm_mtls_keygen.first_boot_settings import Outcome, World
from tpm_mtls_keygen.first_boot_steps import Wish
from tpm_mtls_keygen.install import Installation, begin
from tpm_mtls_keygen.restore import restore

if TYPE_CHECKING:
    from pathlib import Path

FILE = Wish(place=KeyPlace.TSS2, copy=True)


@pytest.fixture(params=[COPY, FILE], ids=["persistent", "file"])
def enrolled(request: pytest.FixtureRequest, attested: AttestedBench) -> AttestedBench:
    attested.run(wish=request.param)
    return attested


@pytest.fixture
def persistent(attested: AttestedBench) -> AttestedBench:
    attested.run()
    return attested


def bring_back(bench: AttestedBench, world: World | None = None) -> Outcome:
    return restore(bench.folder, bench.tpm.tcti, world or World())


def test_a_lost_certificate_comes_back_and_the_rest_stays(enrolled: AttestedBench) -> None:
    before = enrolled.files()
    (enrolled.folder / CERTIFICATE).unlink()
    with pytest.raises(IdentityError, match=r"device.cert.pem is missing") as missing:
        enrolled.run()
    assert "keygen restore" in missing.value.hint

    assert bring_back(enrolled).restored

    assert enrolled.files() == before
    enrolled.assert_whole()


def test_the_newest_certificate_comes_back(enrolled: AttestedBench) -> None:
    enrolled.renew(rotate_key=True)
    before = enrolled.files()
    (enrolled.folder / CERTIFICATE).unlink()
    assert bring_back(enrolled).restored
    assert enrolled.files() == before


def test_where_it_is_there_nothing_happens_and_no_tpm_is_asked(persistent: AttestedBench) -> None:
    before = persistent.files()
    persistent.tpm.stop()
    outcome = bring_back(persistent)
    assert (outcome.changed, outcome.restored) == (False, False)
    assert persistent.files() == before


def test_an_interrupted_change_is_finished_instead(persistent: AttestedBench) -> None:
    record = load_record(persistent.folder)
    assert record is not None
    certificates = (persistent.folder / CERTIFICATE).read_bytes()
    begin(persistent.folder, Installation(record=record, certificates=certificates))
    (persistent.folder / CERTIFICATE).unlink()
    assert bring_back(persistent).changed
    assert not (persistent.folder / INSTALL).exists()
    persistent.assert_whole()


def test_without_an_identity_there_is_nothing_to_restore(attested: AttestedBench) -> None:
    for _ in range(2):
        with pytest.raises(IdentityError, match="there is no identity in") as refusal:
            bring_back(attested)
        assert "first-boot" in refusal.value.hint
        attested.folder.mkdir(exist_ok=True)


def test_without_a_copy_nothing_can_be_restored(attested: AttestedBench) -> None:
    attested.run(wish=Wish())
    (attested.folder / CERTIFICATE).unlink()
    with pytest.raises(IdentityError, match="has no copy of the identity"):
        bring_back(attested)


def test_a_copy_of_another_identity_is_not_taken(persistent: AttestedBench) -> None:
    (persistent.folder / CERTIFICATE).unlink()
    path = persistent.folder / "identity.json"
    path.write_text(path.read_text().replace(DEVICE, "sensor-18"))
    with pytest.raises(IdentityError, match="has a copy of another identity"):
        bring_back(persistent)


def test_a_key_that_is_gone_is_told(persistent: AttestedBench) -> None:
    (persistent.folder / CERTIFICATE).unlink()
    persistent.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")
    with pytest.raises(IdentityError, match="is gone: nothing is there"):
        bring_back(persistent)


def test_the_trust_anchor_is_never_taken_from_the_copy(persistent: AttestedBench, tmp_path: Path) -> None:
    (persistent.folder / CERTIFICATE).unlink()
    right = (persistent.folder / TRUST).read_bytes()
    (persistent.folder / TRUST).unlink()
    with pytest.raises(IdentityError, match=r"ca.cert.pem is missing"):
        bring_back(persistent)
    (persistent.folder / TRUST).write_bytes(TestCa(tmp_path).trust.read_bytes())
    with pytest.raises(CredentialError):
        bring_back(persistent)
    assert not (persistent.folder / CERTIFICATE).exists()
    (persistent.folder / TRUST).write_bytes(right)
    assert bring_back(persistent).restored


def test_a_copy_that_has_expired_is_not_restored(persistent: AttestedBench) -> None:
    late = persistent.leaf().not_valid_after_utc + timedelta(days=1)
    (persistent.folder / CERTIFICATE).unlink()
    with pytest.raises(CertificateExpiredError):
        bring_back(persistent, World(now=lambda: late))
    assert not (persistent.folder / CERTIFICATE).exists()


def test_the_command_line(persistent: AttestedBench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(persistent.command("restore")) == 0
    assert capsys.readouterr().out == f"nothing to restore: {DEVICE}\n"
    (persistent.folder / CERTIFICATE).unlink()
    assert run(persistent.command("restore", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == {
        "changed": True,
        "restored": True,
        "device": DEVICE,
        "certificate": str(persistent.folder / CERTIFICATE),
    }
    (persistent.folder / CERTIFICATE).unlink()
    assert run(persistent.command("restore")) == 0
    assert capsys.readouterr().out == f"certificate restored from the TPM: {DEVICE}\n"


def test_killed_anywhere_the_next_run_restores_it(persistent: AttestedBench) -> None:
    (persistent.folder / CERTIFICATE).unlink()
    command = [sys.executable, "-c", DIES_AT_FILE_CHANGE, str(persistent.folder), "0"]
    subprocess.run([*command, *persistent.command("restore")], check=False, capture_output=True, timeout=60)
    assert not (persistent.folder / CERTIFICATE).exists()
    with TpmTap(persistent.tpm.tcti) as tap:
        process = subprocess.Popen(
            [sys.executable, "-m", "tpm_mtls", *persistent.command("restore", "--tcti", tap.tcti)],
            stderr=subprocess.DEVNULL,
        )
        tap.kill(process, at=3, answered=True)
        process.wait(60)
    assert not (persistent.folder / CERTIFICATE).exists()
    assert bring_back(persistent).restored
    persistent.assert_whole()
