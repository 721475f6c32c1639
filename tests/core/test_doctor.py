"""The command ``tpm-mtls doctor``: its order, its answers and its bundle, in this process."""

from __future__ import annotations

import json
import os
import tarfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from support.patient import FakeMachine, Patient, utc_now
from tpm_mtls.cli import run
from tpm_mtls.doctor import bundle, diagnosis
from tpm_mtls.doctor.bundle import write_bundle
from tpm_mtls.doctor.diagnosis import Diagnosis, Settings, diagnose
from tpm_mtls.doctor.findings import ok, problem, warning
from tpm_mtls.doctor.identity_report import IdentityReport
from tpm_mtls.doctor.machine import Machine
from tpm_mtls.doctor.presentation import as_data, as_text, failure
from tpm_mtls.errors import StateError
from tpm_mtls.identity import CERTIFICATE, TRUST

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.doctor.findings import Finding

FOUND = (
    ok("clock", "right"),
    problem("tpm.lockout", "locked", "wait"),
    warning("w", "soon", "look"),
    problem("z", "y", "x"),
)
NOW = datetime(2027, 1, 15, tzinfo=UTC)


def said(*findings: Finding, folder: str = "/none", tcti: str = "swtpm:port=1") -> Diagnosis:
    return Diagnosis(
        tcti=tcti,
        findings=findings,
        machine=Machine(user="ada"),
        tpm=None,
        openssl=None,
        identity=IdentityReport(folder=folder),
    )


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        files = {each.name: archive.extractfile(each) for each in archive.getmembers()}
        return {name.rpartition("/")[2]: file.read().decode() for name, file in files.items() if file is not None}


def test_a_person_sees_a_line_for_each_finding_and_its_remedy_below() -> None:
    assert as_text(said(*FOUND)).splitlines() == [
        "ok       clock                   right",
        "problem  tpm.lockout             locked",
        "                                 -> wait",
        "warning  w                       soon",
        "                                 -> look",
        "problem  z                       y",
        "                                 -> x",
        "2 problems, 1 warning",
    ]
    assert as_text(said()) == "no problems, no warnings"


def test_a_script_gets_the_same() -> None:
    data = as_data(said(*FOUND))
    assert (data["format"], data["healthy"], data["tcti"]) == (1, False, "swtpm:port=1")
    assert data["findings"][1] == {"check": "tpm.lockout", "level": "problem", "text": "locked", "remedy": "wait"}
    assert as_data(said(FOUND[2]))["healthy"] is True


def test_the_error_is_the_first_problem() -> None:
    error = failure(said(*FOUND))
    assert (str(error), error.hint, error.exit_code) == ("tpm.lockout: locked; and 1 more", "wait", 10)
    assert str(failure(said(FOUND[1]))) == "tpm.lockout: locked"


def test_the_parts_are_examined_in_the_order_of_cause_and_effect(tpm: SimulatedTpm, tmp_path: Path) -> None:
    found = Patient(tpm, tmp_path).examine()
    assert found.problems == []
    parts = [each.check.partition(".")[0] for each in found.findings]
    assert list(dict.fromkeys(parts)) == ["tpm", "clock", "openssl", "identity", "network"]


def test_what_cannot_work_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(tmp_path / "m", nodes={}, version=None)
    monkeypatch.setattr(diagnosis, "OPENSSL", "no_such_program")
    settings = Settings(tcti=machine.tcti, folder=tmp_path / "state", places=machine.places)
    found = diagnose(settings, now=utc_now)
    assert (found.tpm, found.openssl) == (None, None)
    assert [each.check for each in found.problems] == ["tpm.device", "openssl.works"]
    assert "no_such_program ended without an answer" in found.problems[1].text
    nowhere = diagnose(Settings(tcti="tin:can", folder=tmp_path / "state", places=machine.places), now=utc_now)
    assert nowhere.tcti == ""
    assert nowhere.problems[0].check == "configuration"


def test_a_tpm_that_is_late_and_a_record_without_a_ca_are_findings(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path)
    patient.change_record(ca_url="ldap://ca.example")
    found = patient.examine(tcti="cmd:exec sleep 60", patience=0.2)
    assert found.tpm is not None
    assert [each.check for each in found.problems] == ["tpm.answers"]
    assert not [each for each in found.findings if each.check.startswith("network.")]


def test_the_command_answers_and_ends_with_the_cause(
    tpm: SimulatedTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    path = tmp_path / "support.tar.gz"
    arguments = ["doctor", "--state-dir", str(tmp_path / "state"), "--bundle", str(path)]
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    assert contents(path).keys() == {"README.txt", "doctor.txt", "doctor.json", "facts.json", "system.json"}
    assert run([*arguments, "--json"]) == 10  # there is a file already
    assert "is not overwritten" in capsys.readouterr().err
    assert run([*arguments[:3], "--bundle", str(tmp_path / "none" / "b.tar.gz")]) == 8
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("no problems")  # where no file can be written, all is said yet
    assert "cannot write" in err
    assert run([*arguments[:3], "--ca", "https://127.0.0.1:9", "--backend", "https://127.0.0.1:9"]) == 10
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("2 problems")
    assert err.startswith("tpm-mtls: error: network.ca: ")


def test_a_bundle_says_nothing_of_what_a_tcti_program_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPM_MTLS_TCTI", "pcap:cmd:ssh \\\n  -p PASSWORD host")
    tcti = "cmd:ssh -p PASSWORD host"
    path = tmp_path / "b.tar.gz"
    write_bundle(path, said(problem("tpm.answers", f"no TPM at {tcti}", "h"), tcti=tcti), now=NOW)
    found = contents(path)
    assert "PASSWORD" not in "".join(found.values())
    assert json.loads(found["facts.json"])["tcti"] == "cmd:…"
    assert json.loads(found["system.json"])["environment"]["TPM_MTLS_TCTI"] == "pcap:cmd:…"
    with pytest.raises(StateError, match="exists already"):
        write_bundle(path, said(), now=NOW)


def test_a_bundle_has_the_certificates_and_what_is_known_of_the_system(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(tpm, tmp_path)
    path = tmp_path / "b.tar.gz"
    (tmp_path / "config.toml").write_text('relay = "never"\n')
    monkeypatch.setenv("TPM_MTLS_CONFIG", str(tmp_path / "config.toml"))
    write_bundle(path, said(folder=str(patient.folder)), now=NOW)
    found = contents(path)
    assert found[CERTIFICATE] == (patient.folder / CERTIFICATE).read_text()
    assert found[TRUST] == (patient.folder / TRUST).read_text()
    system = json.loads(found["system.json"])
    assert system["configuration"] == {"relay": "never", "tcti": None, "latency_model": None}
    assert system["packages"]["tpm-mtls"]


def test_a_system_that_tells_little_makes_a_bundle_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_file() -> dict[str, str]:
        raise FileNotFoundError

    monkeypatch.setattr("platform.freedesktop_os_release", without_the_file)
    monkeypatch.setattr(bundle, "_PACKAGES", ("no-such-package",))
    (tmp_path / "config.toml").write_text("relay = 1\n")
    monkeypatch.setenv("TPM_MTLS_CONFIG", str(tmp_path / "config.toml"))
    write_bundle(tmp_path / "b.tar.gz", said(), now=NOW)
    system = json.loads(contents(tmp_path / "b.tar.gz")["system.json"])
    assert (system["system"], system["packages"]) == ("", {"no-such-package": ""})
    assert "relay is no text" in system["configuration"]["error"]


def test_a_folder_whose_name_is_no_utf_8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--state-dir", os.fsdecode(b"/none/\xff")]) == 2
    assert "has bytes that are no UTF-8" in capsys.readouterr().err
