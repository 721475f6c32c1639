"""``tpm-mtls doctor`` before set-ups that are broken on purpose, each in one way: the first problem names the cause."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.certificates import TestCa, now
from support.event_logs import keep_banks
from support.https_server import HttpsServer, fixed, http
from support.patient import NOBODY_LISTENS, FakeMachine, Patient
from support.policies import extend, pcr_policy
from tpm_mtls.doctor.servers import backend_peer, ca_peer
from tpm_mtls.identity import CERTIFICATE, KEY, RECORD, TRUST

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.tpm import SimulatedTpm
    from tpm_mtls.doctor.findings import Finding

# TPM_TAG_RSP_COMMAND, 10 bytes, TPM_BADTAG: part 2, 6.6.1
TPM_1_2 = r"cmd:printf '\000\304\000\000\000\012\000\000\000\036'; exec cat > /dev/null"
OK = fixed(http(200))


@pytest.fixture
def patient(tpm: SimulatedTpm, tmp_path: Path) -> Patient:
    return Patient(tpm, tmp_path)


def is_about(finding: Finding, check: str, text: str, remedy: str) -> None:
    assert finding.check == check, finding
    assert re.search(text, finding.text), finding
    assert re.search(remedy, finding.remedy), finding


def test_a_device_that_is_well_has_no_problem(patient: Patient) -> None:
    with HttpsServer(patient.server_context(), OK) as server:
        patient.change_record(ca_url=server.url(""))
        found = patient.examine(peers=(backend_peer(server.url("/whoami")),))
    assert found.problems == []
    levels = {finding.check: finding.level for finding in found.findings}
    assert [check for check, level in levels.items() if level != "ok"] == ["tpm.hierarchies"]
    assert levels.keys() >= {"identity.key", "network.ca", "network.backend", "tpm.same", "openssl.provider"}
    assert [(each.line, each.device) for each in server.requests] == [
        ("GET /.well-known/est/cacerts HTTP/1.1", None),
        ("GET /whoami HTTP/1.1", "sensor-17"),
    ]


# the machine


def test_1_no_tpm_at_all(patient: Patient, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "m", nodes={}, version=None)
    found = patient.cause(tcti=machine.tcti, places=machine.places)
    is_about(found, "tpm.device", "nothing says that this machine has a TPM", "firmware's set-up")


def test_2_a_container_without_the_device(patient: Patient, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "m", nodes={})
    found = patient.cause(tcti=machine.tcti, places=machine.places)
    is_about(
        found, "tpm.device", "the kernel has the TPM tpm0, but there is no .*tpmrm0", "--device .*PrivateDevices=no"
    )


def test_3_a_user_who_may_not_open_it(patient: Patient, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "m", nodes={"tpmrm0": 0o600}, may_open=False)
    found = patient.cause(tcti=machine.tcti, places=machine.places)
    is_about(found, "tpm.permissions", "may not open .*0600", "udev rules are missing.*tpm-udev")


def test_4_a_tpm_1_2_by_what_the_kernel_says(patient: Patient, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "m", nodes={"tpm0": 0o600}, version="1")
    found = patient.cause(tcti=machine.tcti, places=machine.places)
    is_about(found, "tpm.version", "is a TPM 1.2", "switch it to TPM 2.0")


def test_4_a_tpm_1_2_by_its_own_answer(patient: Patient) -> None:
    is_about(patient.cause(tcti=TPM_1_2), "tpm.version", "is a TPM 1.2", "TPM 2.0 is needed")


def test_5_another_resource_manager_holds_the_raw_device(patient: Patient, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "m")
    program = tmp_path / "tpm2-abrmd"
    shutil.copy("/bin/sh", program)
    raw = machine.dev / "tpm0"
    command, pipe = [program, "-c", "echo ready; read line"], subprocess.PIPE
    with raw.open("rb") as held:
        holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[held.fileno()])
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"  # Popen returns before the kernel gives it its new name
            found = patient.cause(tcti=f"device:{raw}", places=machine.places)
        finally:
            holder.terminate()
    held_by = rf"tpm0 is held by tpm2-abrmd \(process {holder.pid}\)"
    is_about(found, "tpm.resource-manager", held_by, "--tcti tabrmd; or end tpm2-abrmd")


# the TPM


def test_6_a_simulator_that_does_not_run(patient: Patient) -> None:
    patient.device.tpm.stop()
    is_about(patient.cause(), "tpm.answers", "no TPM answers at swtpm:", "is it there")


def test_6_a_tpm_that_never_answers(patient: Patient) -> None:
    found = patient.cause(tcti="cmd:exec sleep 60", patience=1.5)
    is_about(found, "tpm.answers", "does not answer within 1.5 seconds", "another program hold it")


def test_7_a_locked_tpm(patient: Patient) -> None:
    tpm = patient.device.tpm
    tpm.tool("tpm2_nvdefine", "0x1500077", "-C", "o", "-s", "8", "-a", "authread|authwrite", "-p", "secret")
    tpm.tool("tpm2_dictionarylockout", "-s", "-n", "1", "-t", "1000", "-l", "1000")
    assert tpm.tool("tpm2_nvread", "0x1500077", "-P", "wrong", check=False).returncode
    is_about(
        patient.cause(),
        "tpm.lockout",
        "locked: 1 of 1 wrong",
        "find out who tries, or whether power was lost without a TPM shutdown.*clear-lockout",
    )


def test_8_programs_left_objects_in_all_slots(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path, persistent=False)  # a key in a file needs a slot
    for _ in range(3):
        tpm.tool("tpm2_createprimary", "-c", str(tmp_path / "context"))
    found = patient.examine()
    tpm.flush()
    is_about(found.problems[0], "tpm.leaked-objects", "3 objects .* room for no more", "tpm2_flushcontext -T .* -t;")
    assert "identity.key" in {each.check for each in found.problems}  # what follows from it comes later


def test_9_the_bank_sha256_is_switched_off(patient: Patient) -> None:
    keep_banks(patient.device.tpm, "sha1")
    found = patient.cause()
    is_about(found, "tpm.pcr-banks", "sha256 is switched off; there is only sha1", "firmware's set-up")


def test_10_the_tpm_was_cleared(patient: Patient) -> None:
    patient.device.tpm.tool("tpm2_clear")
    is_about(patient.cause(), "tpm.same", "the TPM was cleared", "enroll it anew")


def test_10_the_disk_of_another_device(patient: Patient, make_tpm: Callable[..., SimulatedTpm]) -> None:
    is_about(patient.cause(tcti=make_tpm().tcti), "tpm.same", "this is another TPM", "disk back")


def test_11_something_else_is_in_the_storage_root_keys_place(patient: Patient, tmp_path: Path) -> None:
    tpm, context = patient.device.tpm, str(tmp_path / "context")
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
    tpm.tool(
        "tpm2_createprimary",
        "-c",
        context,
        "-G",
        "ecc:ecdsa",
        "-a",
        "sign|fixedtpm|fixedparent|userwithauth|sensitivedataorigin",
    )
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", context, "0x81000001")
    tpm.flush()
    found = patient.cause()
    is_about(found, "tpm.storage-root-key", "0x81000001 is occupied by something else", "tpm2_evictcontrol")


def test_11_the_machine_has_booted_something_else(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path, policy=[pcr_policy()])
    extend(tpm)
    (found,) = patient.examine().problems
    is_about(found, "identity.key", "policy", "tpm-mtls|sign|boot")


def test_11_somebody_has_disabled_the_owner_hierarchy(patient: Patient) -> None:
    patient.device.tpm.tool("tpm2_hierarchycontrol", "-C", "p", "shEnable", "clear")
    (found,) = patient.examine().problems  # and not: another TPM, enroll anew
    is_about(found, "tpm.hierarchies", "the owner hierarchy is disabled", "restart")


def test_11_somebody_has_removed_the_key(patient: Patient) -> None:
    patient.device.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")
    is_about(patient.cause(), "identity.key", "nothing at that handle", "enroll anew")


# OpenSSL


def test_12_the_configuration_takes_the_default_provider_away(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "openssl.cnf"
    path.write_text("openssl_conf = a\n[a]\nproviders = b\n[b]\nlegacy = c\n[c]\nactivate = 1\n")
    monkeypatch.setenv("OPENSSL_CONF", str(path))
    is_about(patient.cause(), "openssl.configuration", "no ciphers.*OPENSSL_CONF.*no default provider", "unset")
    done = run(patient, program=("client", "get", "https://127.0.0.1:9"))
    assert done.returncode == 9
    assert "error: no TLS connection can be made with this OpenSSL: library has no ciphers" in done.stderr


def test_12_the_provider_is_missing(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    is_about(patient.cause(), "openssl.provider", "there is no tpm2 provider in", "tpm2-openssl")


def test_12_the_provider_is_no_library(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tpm2.so").write_text("of another architecture")
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    is_about(patient.cause(), "openssl.provider", "does not load", "is it made for this OpenSSL")


# the identity folder and the clock


def test_13_the_certificate_is_another_keys(patient: Patient) -> None:
    other = patient.ca.software_identity("sensor-17")
    shutil.copy(other.certificate, patient.folder / CERTIFICATE)
    is_about(patient.cause(), "identity.certificate", "does not belong to the key", "issued for this key")


def test_13_the_certificate_is_missing_and_said_once(patient: Patient) -> None:
    (patient.folder / CERTIFICATE).unlink()
    (found,) = patient.examine().problems
    is_about(found, "identity.certificate", f"cannot read .*{CERTIFICATE}: no such file", "tpm-mtls keygen restore")


def test_14_the_certificate_expired(patient: Patient) -> None:
    found = patient.cause(now=lambda: now() + timedelta(days=40))
    is_about(found, "identity.certificate", "the certificate expired", "tpm-mtls keygen renew")


def test_14_the_certificate_expired_for_openssl_too(patient: Patient) -> None:
    expired = patient.ca.certify(
        patient.public_key(), "sensor-17", not_before=now() - timedelta(days=1), not_after=now() - timedelta(hours=1)
    )
    shutil.copy(expired, patient.folder / CERTIFICATE)
    (found,) = patient.examine().problems
    is_about(found, "identity.certificate", "the certificate expired", "tpm-mtls keygen renew")


def test_15_the_clock_is_wrong(patient: Patient) -> None:
    at_boot = datetime(1970, 1, 1, 0, 2, tzinfo=UTC)
    is_about(patient.cause(now=lambda: at_boot), "clock", "the clock says 1970", "timedatectl")


def test_16_the_record_is_cut_off(patient: Patient) -> None:
    record = patient.folder / RECORD
    record.write_bytes(record.read_bytes()[:100])
    is_about(patient.cause(), "identity.record", "identity.json is damaged", "backup, or enroll again")


def test_17_the_enrollment_was_interrupted(patient: Patient) -> None:
    (patient.folder / RECORD).unlink()
    is_about(patient.cause(), "identity.record", "no identity.json: whose they are", "move the files away")
    (patient.folder / "first-boot.json").touch()
    is_about(patient.cause(), "identity.record", "enrollment was interrupted", "first-boot again")


def test_18_everybody_may_write_to_the_identity_folder(patient: Patient) -> None:
    patient.folder.chmod(0o777)
    is_about(patient.cause(), "identity.folder", "other users may write to", "chmod 0750")


def test_19_the_trust_anchor_is_another_cas(patient: Patient, tmp_path: Path) -> None:
    shutil.copy(TestCa(tmp_path, "other").trust, patient.folder / TRUST)
    is_about(patient.cause(), "identity.chain", "does not lead to the trust anchor", "root certificate")


def test_20_the_configuration_is_misspelt(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text('tctl = "device:/dev/tpmrm0"\n')
    monkeypatch.setenv("TPM_MTLS_CONFIG", str(tmp_path / "config.toml"))
    is_about(patient.cause(), "configuration", "unknown setting: 'tctl'", "known ones")


# the network


def test_21_nobody_answers_at_the_cas_url(patient: Patient) -> None:
    found = patient.cause(peers=(ca_peer(NOBODY_LISTENS),))
    is_about(found, "network.ca", "the CA at https://127.0.0.1:9 cannot be reached: connection refused", "firewall")


def test_21_the_network_is_left_by_a_proxy_only(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:PASSWORD@proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "elsewhere.example")
    monkeypatch.delenv("no_proxy", raising=False)
    found = patient.cause(peers=(backend_peer(NOBODY_LISTENS),))
    is_about(found, "network.backend", "cannot be reached", "HTTPS_PROXY is set, but tpm-mtls uses no proxy")
    assert "PASSWORD" not in found.remedy


def test_22_the_backend_is_certified_by_somebody_else(patient: Patient, tmp_path: Path) -> None:
    with HttpsServer(patient.server_context(ca=TestCa(tmp_path, "other"))) as server:
        found = patient.cause(peers=(backend_peer(server.url()),))
    is_about(found, "network.backend", "the backend at .* is not trusted", ".")


def test_23_the_backend_does_not_know_the_device(patient: Patient) -> None:
    with HttpsServer(patient.server_context(), fixed(http(403))) as server:
        found = patient.cause(peers=(backend_peer(server.url()),))
    is_about(found, "network.backend", r"refuses this device \(HTTP 403\)", "registered")


# the command


def run(patient: Patient, *arguments: str, program: tuple[str, ...] = ("doctor",)) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tpm_mtls", *program, "--state-dir", str(patient.folder), *arguments]
    environment = os.environ | {"TPM_MTLS_TCTI": patient.device.tpm.tcti}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_says_the_cause_and_what_to_type_and_ends_with_a_status(patient: Patient) -> None:
    well = run(patient)
    assert (well.returncode, well.stderr) == (0, "")
    assert well.stdout.splitlines()[-1] == "no problems, 2 warnings"
    patient.folder.chmod(0o770)
    ill = run(patient, "--json")
    assert ill.returncode == 10
    assert ill.stderr.startswith("tpm-mtls: error: identity.folder: other users may write to")
    assert "tpm-mtls: hint: chmod 0750" in ill.stderr
    said = json.loads(ill.stdout)
    assert said["healthy"] is False
    assert {each["level"] for each in said["findings"]} == {"ok", "warning", "problem"}


def test_a_bundle_has_what_helps_and_no_secret(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path, persistent=False)
    software = patient.ca.software_identity("other")
    (patient.folder / "bootstrap.token").write_text("sensor-17:TOKEN-of-the-device")
    secret_key = Path(str(software.key)).read_bytes()
    with (patient.folder / CERTIFICATE).open("ab") as certificate:  # somebody put the key behind the certificate
        certificate.write(secret_key)
    path = tmp_path / "support.tar.gz"
    assert run(patient, "--bundle", str(path)).returncode == 10
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        files = {each.name.rpartition("/")[2]: archive.extractfile(each).read() for each in archive.getmembers()}  # type: ignore[union-attr]  # only files
    assert files.keys() == {"README.txt", "doctor.txt", "doctor.json", "facts.json", "system.json", TRUST}
    everything = b"".join(files.values())
    for secret in (b"PRIVATE KEY", b"TOKEN-of", (patient.folder / KEY).read_bytes()[60:100], secret_key[60:100]):
        assert secret not in everything
    assert json.loads(files["facts.json"])["tpm"]["condition"]["vendor"] == "IBM"
    again = run(patient, "--bundle", str(path))
    assert again.stdout == ""
    assert "exists already and is not overwritten" in again.stderr


def test_an_url_with_a_password_is_refused_and_not_repeated(patient: Patient) -> None:
    done = run(patient, "--ca", "https://user:PASSWORD@ca.example")
    assert done.returncode == 2
    assert "has a user" in done.stderr
    assert "PASSWORD" not in done.stderr + done.stdout
