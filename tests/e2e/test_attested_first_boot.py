"""A device with no secret on board gets its identity by itself, keeps it, and nobody else gets it."""

from __future__ import annotations

import json
import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from support.fleet import Device, FleetCa, fleet_ca, measure, tpm_mtls
from support.tpm import SimulatedTpm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POWER_CUTS = int(os.environ.get("TPM_MTLS_POWER_CUTS", "10"))
"""How many random moments first boot is killed at; a number of 5s."""

_AT_A_TIME = 5


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetCa]:
    with fleet_ca(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


@pytest.fixture
def make_device(ca: FleetCa, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path) -> Callable[[], Device]:
    """Makes devices with genuine TPMs, each with a disk of its own."""
    made: list[Device] = []

    def make() -> Device:
        device = Device(make_tpm(ek_certificates=True), tmp_path / f"disk-{len(made)}" / "identity", ca)
        device.folder.parent.mkdir()
        ca.trust_maker(device.tpm)
        made.append(device)
        return device

    return make


@pytest.fixture
def device(make_device: Callable[[], Device]) -> Device:
    return make_device()


@pytest.fixture
def enrolled(device: Device) -> Device:
    done = device.first_boot()
    assert done.returncode == 0, done.stderr
    return device


def test_a_device_without_a_secret_enrolls_by_itself(device: Device, ca: FleetCa) -> None:
    """The command names the CA and its root, nothing else; the TPM's evidence does the rest. Again: nothing changes."""
    done = device.first_boot()
    assert done.returncode == 0, done.stderr
    device.assert_enrolled()
    record = device.record()
    assert record["enrolled_by"] == "tpm"
    assert record["ek_sha256"] == ek_hash(device)
    assert record["device"] == f"ek-{ek_hash(device)[:40]}"

    answer = device.get("/.well-known/est/csrattrs")
    assert answer.returncode == 0, answer.stderr

    before = device.certificate()
    again = device.first_boot("--json")
    assert (again.returncode, json.loads(again.stdout)["changed"]) == (0, False)
    assert device.certificate() == before
    assert json.loads(ca.pki("audit", "--verify", "--json"))


def test_openssl_accepts_both_certificates_strictly(enrolled: Device, ca: FleetCa, tmp_path: Path) -> None:
    ak = tmp_path / "ak.der"
    ak.write_bytes(enrolled.attestation_certificate())
    chain = enrolled.folder / "device.cert.pem"
    verify = ("openssl", "verify", "-x509_strict", "-CAfile", ca.root, "-untrusted", str(chain))
    assert enrolled.tpm.tool(*verify, str(chain)).stdout.endswith("OK\n")
    assert enrolled.tpm.tool(*verify, str(ak)).stdout.endswith("OK\n")
    refused = enrolled.tpm.tool(*verify, "-purpose", "sslclient", str(ak), check=False)
    assert refused.returncode != 0, "an attestation key's certificate is none for TLS"
    text = enrolled.tpm.tool("openssl", "x509", "-in", str(chain), "-noout", "-text").stdout
    assert "2.23.133.11.1.1" in text
    assert "2.23.133.11.1.2" in text
    named = "othername: Hardware Module Name:"  # by OpenSSL 3.5; 3.0 has no name for it
    assert named in text or "othername: 1.3.6.1.5.5.7.8.4:" in text
    assert "othername: Permanent Identifier:" in text


def test_a_wiped_disk_comes_back_from_the_tpm(enrolled: Device, ca: FleetCa) -> None:
    """Without the CA: it is not even reachable, and it has issued nothing more."""
    certificate, record, issued = enrolled.certificate(), enrolled.record(), len(ca.issued())
    enrolled.wipe()
    done = enrolled.first_boot(url="https://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    enrolled.assert_enrolled()
    assert (enrolled.certificate(), enrolled.record()) == (certificate, record)
    assert len(ca.issued()) == issued
    assert enrolled.get("/.well-known/est/csrattrs").returncode == 0


def test_a_cleared_tpm_is_named_and_nothing_is_enrolled(enrolled: Device, ca: FleetCa) -> None:
    certificate, issued = enrolled.certificate(), len(ca.issued())
    enrolled.tpm.tool("tpm2_clear", "-c", "p")
    done = enrolled.first_boot()
    assert done.returncode == 10
    assert "the TPM was cleared" in done.stderr
    assert (enrolled.certificate(), len(ca.issued())) == (certificate, issued)


def test_a_replaced_tpm_is_named_and_nothing_is_enrolled(
    enrolled: Device, ca: FleetCa, make_device: Callable[[], Device]
) -> None:
    other = Device(make_device().tpm, enrolled.folder, ca)
    issued = len(ca.issued())
    done = other.first_boot()
    assert done.returncode == 10
    assert "this is another TPM" in done.stderr
    assert len(ca.issued()) == issued
    enrolled.assert_enrolled()


def test_the_disk_of_another_device_is_named(ca: FleetCa, make_device: Callable[[], Device]) -> None:
    """Two devices, both with their identity at the same path; somebody swaps the disks."""
    first, second = make_device(), make_device()
    second = Device(second.tpm, first.folder, ca)
    away = first.folder.with_name("away")
    assert first.first_boot().returncode == 0
    first.folder.rename(away)
    assert second.first_boot().returncode == 0
    mine = second.record()["device"]
    second.wipe()
    away.rename(first.folder)
    done = second.first_boot()
    assert done.returncode == 10
    assert f"this is the disk of another device, the TPM belongs to {mine}" in done.stderr


def test_a_certificate_of_another_key_is_named(enrolled: Device, make_device: Callable[[], Device]) -> None:
    other = make_device()
    assert other.first_boot().returncode == 0
    shutil.copy(other.folder / "device.cert.pem", enrolled.folder / "device.cert.pem")
    done = enrolled.first_boot()
    assert done.returncode == 5
    assert "belongs to another key" in done.stderr


@pytest.mark.parametrize("options", [(), ("--new-key",)], ids=["same key", "new key"])
def test_a_renewal_takes_the_same_evidence(enrolled: Device, ca: FleetCa, options: tuple[str, ...]) -> None:
    before, record = enrolled.certificate(), enrolled.record()
    done = enrolled.run("renew", *options)
    assert done.returncode == 0, done.stderr
    enrolled.assert_enrolled()
    assert enrolled.certificate() != before
    after = enrolled.record()
    assert after["device"] == record["device"]
    assert (after["key_name"] != record["key_name"]) == bool(options)
    assert checks(ca, "evidence-accepted", record["device"]) == [8, 9]
    enrolled.wipe()
    assert enrolled.first_boot(url="https://127.0.0.1:1").returncode == 0, "the copy was renewed, too"
    enrolled.assert_enrolled()


def test_a_name_goes_to_another_tpm_only_after_its_release(ca: FleetCa, make_device: Callable[[], Device]) -> None:
    """A repair: the board with the TPM is exchanged, the device keeps its name. The old board never gets it back."""
    old, new = make_device(), make_device()
    name = "pump-7"
    ca.pki("allow", "add", "--ek-hash", ek_hash(old), "--device", name)
    assert old.first_boot().returncode == 0
    assert old.record()["device"] == name
    token = ca.folder.parent / "pump.token"
    ca.pki("token", "create", "--device", name, "--out", str(token))
    refused = new.first_boot("--token-file", str(token), "--evidence")
    assert refused.returncode == 7
    assert not (new.folder / "identity.json").exists()
    ca.pki("release", "--device", name)
    done = new.first_boot("--token-file", str(token), "--evidence")
    assert done.returncode == 0, done.stderr
    assert new.record()["device"] == name
    old.wipe()
    again = old.first_boot("--new-identity")
    assert again.returncode == 0, again.stderr
    assert old.record()["device"] == f"ek-{ek_hash(old)[:40]}"
    assert checks(ca, "evidence-refused", name) == [8]


def test_an_administrator_approves_first(tmp_path: Path, make_tpm: Callable[..., SimulatedTpm]) -> None:
    with fleet_ca(tmp_path / "strict", approval="unlisted") as ca:
        device = Device(make_tpm(ek_certificates=True), tmp_path / "disk" / "identity", ca)
        device.folder.parent.mkdir()
        ca.trust_maker(device.tpm)
        waiting = device.first_boot()
        assert waiting.returncode == 7
        assert "has not decided yet" in waiting.stderr
        assert ca.issued() == []
        (request,) = json.loads(ca.pki("approval", "list", "--json"))["approvals"]
        ca.pki("approval", "grant", "--id", str(request["id"]), "--device", "gate-1")
        done = device.first_boot()
        assert done.returncode == 0, done.stderr
        device.assert_enrolled()
        assert device.record()["device"] == "gate-1"


def test_a_tpm_of_an_unknown_maker_is_refused_and_leaves_no_certificate(
    ca: FleetCa, make_tpm: Callable[..., SimulatedTpm], tmp_path: Path
) -> None:
    issued = len(ca.issued())
    device = Device(make_tpm(ek_certificates=True), tmp_path / "identity", ca)
    done = device.first_boot()
    assert done.returncode == 7
    assert len(ca.issued()) == issued
    assert checks(ca, "evidence-refused", ek_hash(device)) == [1]
    ca.trust_maker(device.tpm)
    assert device.first_boot().returncode == 0, "the same key, without a human at the device"
    device.assert_enrolled()


class Chip:
    """A TPM as it came from the factory, again and again."""

    def __init__(self, folder: Path) -> None:
        self.tpm = SimulatedTpm(folder / "tpm", ek_certificates=True)
        self._state = self.tpm.simulator.state
        self._new = folder / "new"
        self.tpm.stop()
        shutil.copytree(self._state, self._new)
        self.tpm.simulator.start()

    def renew(self) -> None:
        """Everything that was ever put into it is gone."""
        self.tpm.stop()
        shutil.rmtree(self._state)
        shutil.copytree(self._new, self._state)
        self.tpm.simulator.start()


@pytest.fixture(scope="module")
def chip(ca: FleetCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chip]:
    chip = Chip(tmp_path_factory.mktemp("chip"))
    try:
        ca.trust_maker(chip.tpm)
        yield chip
        chip.tpm.assert_nothing_leaked()
    finally:
        chip.tpm.stop()


@pytest.fixture(scope="module")
def duration(ca: FleetCa, chip: Chip, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds of an undisturbed first boot."""
    return measure(Device(chip.tpm, tmp_path_factory.mktemp("measured") / "identity", ca))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(POWER_CUTS // _AT_A_TIME))
def test_killed_at_any_moment_it_finishes(ca: FleetCa, chip: Chip, duration: float, tmp_path: Path, batch: int) -> None:
    """One valid certificate in use, no orphan in the TPM, no human. Some devices lose their power twice."""
    moments = random.Random(batch)  # noqa: S311 - the same moments each time
    killed = 0
    for number in range(_AT_A_TIME):
        chip.renew()
        device = Device(chip.tpm, tmp_path / str(number) / "identity", ca)
        device.folder.parent.mkdir()
        for _ in range(moments.choice([1, 1, 2])):
            killed += device.killed_first_boot(moments.uniform(0.2, 1.0) * duration)
        done = device.first_boot()
        assert done.returncode == 0, done.stderr
        device.assert_enrolled()
    assert killed


def checks(ca: FleetCa, event: str, subject: str) -> list[int]:
    """The numbers of the checks in the audit log's rows about ``subject``."""
    rows = json.loads(ca.pki("audit", "--json"))["entries"]
    return [row["detail"]["check"] for row in rows if (row["event"], row["subject"]) == (event, subject)]


def ek_hash(device: Device) -> str:
    return tpm_mtls("keygen", "show", "--ek", "--tcti", device.tpm.tcti).stdout.strip()
