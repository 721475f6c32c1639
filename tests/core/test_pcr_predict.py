"""``tpm-mtls pcr predict``: what a TPM then has, and what an operator signs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from support.event_logs import boot, changed, recorded, recorded_bytes, recorded_pcrs, to_bytes, with_digest_of
from support.noun_command import NounCommand
from support.pe_programs import pe_program
from support.policies import Operator, make_policy_key
from tpm_mtls.cli import run
from tpm_mtls.pcr.authenticode import program_digests

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.event_log import Entry

HEX = "ab" * 32


@pytest.fixture
def pcr(capsys: pytest.CaptureFixture[str]) -> NounCommand:
    return NounCommand("pcr", capsys)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without a TPM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", "device:/nowhere")
    (tmp_path / "boot.log").write_bytes(recorded_bytes("uefi-secureboot"))
    return tmp_path


@pytest.fixture
def present(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> SimulatedTpm:
    """With one."""
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    return tpm


def recorded_value(pcr: int, bank: str = "sha256") -> str:
    return recorded_pcrs("uefi-secureboot")[bank][pcr].hex()


# --- extends


def test_the_value_after_extends_is_what_the_tpm_then_has(present: SimulatedTpm, pcr: NounCommand) -> None:
    extends = [f"7:sha256={HEX}", f"0:sha256={'01' * 32}", f"7:sha256={'CD' * 32}"]
    options = [word for each in extends for word in ("--extend", each)]
    predicted = pcr("predict", "--pcrs", "sha256:0,7,8", *options)
    assert predicted["state"] is None
    assert predicted["pcrs"] != pcr("read", "--pcrs", "sha256:0,7,8")["pcrs"]
    present.tool("tpm2_pcrextend", *extends)
    assert predicted["pcrs"] == pcr("read", "--pcrs", "sha256:0,7,8")["pcrs"]


def test_the_value_after_a_files_measurement_is_what_the_tpm_then_has(
    present: SimulatedTpm, pcr: NounCommand, in_folder: Path
) -> None:
    (in_folder / "a file").write_bytes(b"content")
    predicted = pcr("predict", "--pcrs", "sha256:8,9", "--extend-file", "8:a file", "--extend-file", "8:boot.log")
    present.tool("tpm2_pcrevent", "8", "a file", cwd=in_folder)
    present.tool("tpm2_pcrevent", "8", "boot.log", cwd=in_folder)
    assert predicted["pcrs"] == pcr("read", "--pcrs", "sha256:8,9")["pcrs"]


def test_the_usual_pcrs_are_the_default(present: SimulatedTpm, pcr: NounCommand) -> None:
    assert list(pcr("predict")["pcrs"]["sha256"]) == ["0", "2", "4", "7"]
    assert pcr("predict", "--json")["pcrs"] == pcr("read", "--pcrs", "sha256:0,2,4,7")["pcrs"]
    lines = pcr.text("predict").splitlines()
    assert lines[0] == f"sha256\t0\tfirmware\t{'00' * 32}"
    assert present.handles("transient") == []


# --- states and logs, without a TPM


def test_a_state_is_extended(pcr: NounCommand) -> None:
    pcr("predict", "--event-log", "boot.log", "--pcrs", "sha256:4,7+sha384:7", "--out", "state.json")
    digest = {bank: hashlib.new(bank, b"x").hexdigest() for bank in ("sha256", "sha384")}
    both = ",".join(f"{bank}={value}" for bank, value in digest.items())
    after = pcr("predict", "--pcr-values", "state.json", "--extend", f"7:{both}")["pcrs"]
    assert list(after) == ["sha256", "sha384"]
    assert after["sha256"]["4"] == recorded_value(4)
    for bank, value in digest.items():
        before = bytes.fromhex(recorded_value(7, bank))
        assert after[bank]["7"] == hashlib.new(bank, before + bytes.fromhex(value)).hexdigest()
    assert list(pcr("predict", "--pcr-values", "state.json", "--pcrs", "sha384:7")["pcrs"]) == ["sha384"]


def test_a_log_leads_to_the_values_that_the_machine_had(pcr: NounCommand) -> None:
    found = pcr("predict", "--event-log", "boot.log", "--pcrs", "sha256:0,4,7,14+sha1:9")["pcrs"]
    assert found["sha256"] == {str(each): recorded_value(each) for each in (0, 4, 7, 14)}
    assert found["sha1"] == {"9": recorded_value(9, "sha1")}


def test_a_log_with_other_programs_leads_to_the_values_after_the_update(
    present: SimulatedTpm, pcr: NounCommand, in_folder: Path
) -> None:
    kernel = pe_program(b"6.18")
    (in_folder / "vmlinuz").write_bytes(kernel)
    program = program_digests(kernel, ["sha256"], "vmlinuz")["sha256"]
    replaced = ("--replace-program", "35:vmlinuz", "--replace-file", "34:vmlinuz", "--replace", f"38:sha256={HEX}")
    predicted = pcr("predict", "--event-log", "boot.log", "--pcrs", "sha256:4,7,9", *replaced)

    def update(entries: list[Entry]) -> None:
        entries[34] = with_digest_of(entries[34], kernel)
        for number, digest in ((35, program), (38, bytes.fromhex(HEX))):
            digests = {**entries[number].digests, "sha256": digest}
            entries[number] = dataclasses.replace(entries[number], digests=digests)

    boot(present, changed(recorded("uefi-secureboot"), update))
    assert predicted["pcrs"] == pcr("read", "--pcrs", "sha256:4,7,9")["pcrs"]
    assert predicted["pcrs"]["sha256"]["7"] == recorded_value(7)
    assert predicted["pcrs"]["sha256"]["4"] != recorded_value(4)


def test_what_replaces_must_be_there_in_each_bank(pcr: NounCommand) -> None:
    message = "the event log has no digests for the PCR bank sha384"
    options = ("--event-log", "boot.log", "--pcrs", "sha384:4", "--replace", f"35:sha256={HEX}")
    assert message in pcr("predict", *options, status=5)


# --- the operator signs


def test_the_predicted_state_is_signed_before_it_is_booted(
    present: SimulatedTpm, pcr: NounCommand, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(in_folder)
    make_policy_key(present, in_folder / "key.pem", operator.authorize())
    options = ("--pcrs", "sha256:0,7", "--extend", f"7:sha256={HEX}", "--description", "image 42")
    assert pcr("predict", *options, "--out", "image-42.json")["state"] == "image-42.json"
    state = json.loads((in_folder / "image-42.json").read_text())
    assert state["description"] == "image 42"
    assert (in_folder / "image-42.json").stat().st_mode & 0o777 == 0o644
    sign = ["policy", "sign", "--signer", "operator.key.pem", "--version", "42", "--counter", "none"]
    assert run([*sign, "--pcr-values", "image-42.json", "--out", "image-42.signed-policy.json"]) == 0
    assert run(["policy", "check", "--key", "key.pem"]) == 4
    assert "PCR 7 (sha256) differs" in capsys.readouterr().err
    assert "exists already" in pcr("predict", *options, "--out", "image-42.json", status=10)

    present.tool("tpm2_pcrextend", f"7:sha256={HEX}")

    assert run(["policy", "check", "--key", "key.pem"]) == 0
    assert capsys.readouterr().out
    assert pcr("diff", "key.pem")["same"]


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--extend", "7"), "not a measurement: '7'"),
        (("--extend", f"7:sha256={HEX}0"), "not a measurement"),
        (("--extend", f"7:md5={HEX}"), "not a measurement"),
        (("--extend", f"7:sha256={HEX},sha256={HEX}"), "not a measurement"),
        (("--extend", f"7:sha256={HEX},"), "not a measurement"),
        (("--extend", f"seven:sha256={HEX}"), "not a measurement"),
        (("--extend", f"8:sha256={HEX}"), "PCR 8 (sha256) is extended, but is not one of those to predict"),
        (("--extend", f"7:sha1={'ab' * 20}"), "PCR 7 (sha1) is extended, but is not one of those to predict"),
        (
            ("--pcrs", "sha256:7+sha1:7", "--extend", f"7:sha256={HEX}"),
            "PCR 7 is to be predicted for the bank sha1, too, but its digest is not given",
        ),
        (("--extend-file", "7"), "not a number and a file: '7'"),
        (("--extend-file", "24:boot.log"), "PCR 24 (sha256) is extended, but is not one of those"),
        (
            ("--extend", f"7:sha256={HEX}", "--extend-file", "7:boot.log"),
            "PCR 7 is extended with digests and with files: which comes first is not known",
        ),
        (("--replace", f"41:sha256={HEX}"), "the event log has no entry 41 that extends a PCR"),
        (("--replace", f"0:sha256={HEX}"), "the event log has no entry 0 that extends a PCR"),
        (("--replace", f"4:sha256={HEX}", "--replace-file", "4:boot.log"), "an entry is replaced twice"),
        (("--replace-program", "35:boot.log"), "boot.log is no EFI program"),
        (("--pcrs", "sha256:10"), "the event log has no entries for PCR 10"),
        (("--pcrs", "7"), "not a selection of PCRs"),
        (("--pcr-values", "state.json"), "the values begin either with an event log or with a state"),
    ],
)
def test_what_contradicts_itself_is_refused(pcr: NounCommand, options: tuple[str, ...], message: str) -> None:
    assert message in pcr("predict", "--event-log", "boot.log", *options, status=2)


def test_files_that_are_missing_or_damaged_are_told(pcr: NounCommand, in_folder: Path) -> None:
    assert "no such file" in pcr("predict", "--event-log", "none", status=8)
    assert "no such file" in pcr("predict", "--pcr-values", "none", status=8)
    assert "no such file" in pcr("predict", "--event-log", "boot.log", "--extend-file", "7:none", status=8)
    assert "is a directory" in pcr("predict", "--event-log", "boot.log", "--extend-file", "7:.", status=8)
    (in_folder / "boot.log").write_bytes(to_bytes(recorded("uefi"))[:-1])
    assert "boot.log: malformed event log" in pcr("predict", "--event-log", "boot.log", status=5)
    assert "which event log's entries are to be replaced?" in pcr("predict", "--replace", f"4:sha256={HEX}", status=2)
    assert "there is no TPM at /nowhere" in pcr("predict", status=3)


def test_a_state_that_lacks_a_pcr_is_told(pcr: NounCommand) -> None:
    pcr("predict", "--event-log", "boot.log", "--out", "state.json")
    for selection in ("sha256:14", "sha384:7"):
        assert "state.json has no value of PCR" in pcr(
            "predict", "--pcr-values", "state.json", "--pcrs", selection, status=2
        )
