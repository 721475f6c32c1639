"""``tpm-mtls pcr read`` and ``pcr log``."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.event_logs import keep_banks, recorded, recorded_bytes, recorded_pcrs
from support.noun_command import NounCommand
from support.policies import extend
from tpm_mtls.cli import run
from tpm_mtls.pcr.logs import present_log

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture
def pcr(capsys: pytest.CaptureFixture[str]) -> NounCommand:
    return NounCommand("pcr", capsys)


@pytest.fixture
def in_environment(tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> SimulatedTpm:
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    return tpm


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "boot.log"
    path.write_bytes(recorded_bytes("uefi-secureboot"))
    return path


def pcrread(tpm: SimulatedTpm, *selection: str) -> dict[str, dict[str, str]]:
    """What tpm2_pcrread says."""
    values: dict[str, dict[str, str]] = {}
    for line in tpm.tool("tpm2_pcrread", *selection).stdout.splitlines():
        if bank := re.fullmatch(r"  (\w+):", line):
            found = values[bank[1]] = {}
        elif value := re.fullmatch(r"    (\d+) *: 0x(\w+)", line):
            found[value[1]] = value[2].lower()
    return {bank: found for bank, found in values.items() if found}


def test_all_pcrs_of_all_banks_are_read(in_environment: SimulatedTpm, pcr: NounCommand) -> None:
    extend(in_environment, 7)
    values = pcr("read")["pcrs"]
    assert values == pcrread(in_environment)
    assert [len(found) for found in values.values()] == [24] * len(values)
    assert "sha256" in values


def test_a_selection_is_read(in_environment: SimulatedTpm, pcr: NounCommand) -> None:
    extend(in_environment, 7)
    assert pcr("read", "--pcrs", "sha256:7,0")["pcrs"] == pcrread(in_environment, "sha256:0,7")
    lines = pcr.text("read", "--pcrs", "sha256:0,7").splitlines()
    assert lines[0] == f"sha256\t0\tfirmware\t{'00' * 32}"
    assert lines[1].startswith("sha256\t7\tSecure Boot\t")


def test_what_cannot_be_read_is_told(
    in_environment: SimulatedTpm, pcr: NounCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not a selection of PCRs" in pcr("read", "--pcrs", "sha256:24", status=2)
    keep_banks(in_environment, "sha256", "sha384")
    assert list(pcr("read")["pcrs"]) == ["sha256", "sha384"]
    assert "this TPM keeps no PCR bank sha512" in pcr("read", "--pcrs", "sha512:0", status=4)
    monkeypatch.setenv("TPM_MTLS_TCTI", "device:/nowhere")
    assert "there is no TPM at /nowhere" in pcr("read", status=3)


def test_a_terminal_gets_a_table_and_all_of_each_value(in_environment: SimulatedTpm) -> None:
    controller, terminal = pty.openpty()
    environment = os.environ | {"TPM_MTLS_TCTI": in_environment.tcti, "COLUMNS": "60", "TERM": "xterm"}
    command = [sys.executable, "-m", "tpm_mtls", "pcr", "read", "--pcrs", "sha256:7"]
    subprocess.run(command, stdout=terminal, env=environment, check=True, timeout=60)
    os.close(terminal)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", os.read(controller, 10_000).decode()).splitlines()
    os.close(controller)
    assert re.search(r"bank +PCR +what +value", lines[1])
    assert re.search(r"sha256 +7 +Secure Boot +0", lines[3])
    assert "".join(lines[3:]).count("0") == 64  # a value that does not fit is not cut off


# --- pcr log


def test_a_log_is_told_entry_by_entry(pcr: NounCommand, log: Path) -> None:
    said = pcr("log", log)
    assert (said["format"], said["startup_locality"], len(said["entries"])) == ("crypto-agile", 0, 41)
    values = recorded_pcrs("uefi-secureboot")
    assert said["pcrs"] == {
        bank: {str(each): found[each].hex() for each in sorted(found)} for bank, found in values.items()
    }
    entry = recorded("uefi-secureboot").entries[29]
    assert said["entries"][29] == {
        "number": 29,
        "pcr": 4,
        "type": "EV_EFI_BOOT_SERVICES_APPLICATION",
        "component": "boot loader",
        "text": r"program \EFI\BOOT\grubx64.efi",
        "measured": "nothing",
        "digests": {bank: digest.hex() for bank, digest in entry.digests.items()},
    }


def test_a_log_can_be_narrowed_to_some_pcrs(pcr: NounCommand, log: Path) -> None:
    lines = pcr.text("log", log, "--pcrs", "4,9").splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        [str(each.number), str(each.pcr)] for each in recorded("uefi-secureboot").entries if each.pcr in {4, 9}
    ]
    assert lines[2] == "23\t4\tboot loader\tnothing\tprogram \\EFI\\BOOT\\BOOTX64.EFI"
    assert "not a selection of PCRs" in pcr("log", log, "--pcrs", "4-9", status=2)


def test_what_is_no_log_is_told(pcr: NounCommand, log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-1])
    errors = pcr("log", log, status=5)
    assert f"{log}: malformed event log: it ends after" in errors
    log.write_bytes(bytes(2 << 20))
    assert "is larger than 1048576 bytes" in pcr("log", log, status=5)
    log.unlink()
    assert "no such file" in pcr("log", log, status=8)


def test_the_kernels_log_need_not_be_there(tmp_path: Path, log: Path) -> None:
    found = present_log(None, kernel=tmp_path / "none")
    assert found.log is None
    assert "there is no event log at" in found.why_not
    assert present_log(None, kernel=log).log == recorded("uefi-secureboot")
    assert present_log(log, kernel=tmp_path / "none").why_not == ""
    log.write_bytes(b"damaged")
    for kernel, why in ((log, "malformed event log"), (tmp_path, "is a directory (that is a folder; name a file)")):
        found = present_log(None, kernel=kernel)
        assert found.log is None
        assert why in found.why_not


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("read", "log", "diff", "predict"):
        assert run(["pcr", verb, "--help"]) == 0
        assert f"Example: tpm-mtls pcr {verb}" in capsys.readouterr().out
