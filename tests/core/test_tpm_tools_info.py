"""``tpm-mtls tpm info``, ``capabilities``, ``pcrs`` and ``save-info``; tpm2-tools say the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.event_logs import keep_banks
from support.noun_command import NounCommand
from support.policies import extend
from support.terminal import on_a_terminal
from support.tpm_proxy import TpmProxy
from support.tpm_trace import CommandTrace
from tpm_mtls.structures import ek_hash
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls.tpm.templates import attestation_template
from tpm_mtls.tpm_tools.description import describe, info_rows
from tpm_mtls.tpm_tools.properties import property_name
from tpm_mtls.trace.commands import command_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tpm import SimulatedTpm

_PCR_READ = 0x17E
_WRITES = re.compile(r"EvictControl|NV_(?!Read)|PCR_(?!Read)|Clear|Change|Lock")


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], tpm: SimulatedTpm, monkeypatch: pytest.MonkeyPatch) -> NounCommand:
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    return NounCommand("tpm", capsys)


def listed(tpm: SimulatedTpm, capability: str) -> list[str]:
    """The top-level names of what tpm2_getcap lists."""
    return re.findall(r"^(?:- )?(\w+):?", tpm.tool("tpm2_getcap", capability).stdout, flags=re.MULTILINE)


def values(tpm: SimulatedTpm, capability: str) -> dict[str, int]:
    """Name and raw value of each property that tpm2_getcap lists."""
    found = re.findall(
        r"^TPM2_PT_(\w+):(?:\n +raw:)? 0x(\w+)$", tpm.tool("tpm2_getcap", capability).stdout, re.MULTILINE
    )
    assert len(found) > 15
    return {name: int(value, 16) for name, value in found}


def test_info_says_which_tpm_it_is_and_how_it_is(tool: NounCommand, tpm: SimulatedTpm) -> None:
    said = tool("info")
    fixed = values(tpm, "properties-fixed")
    assert said["vendor"] == fixed["MANUFACTURER"].to_bytes(4, "big").rstrip(b"\0").decode() == "IBM"
    assert said["specification"] == f"2.0 level 0 revision {fixed['REVISION'] / 100:.2f}"
    assert (said["self_test"], said["faults"], said["srk_name"], said["endorsement_keys"]) == ("passed", [], None, {})
    assert said["condition"]["lockout_limit"] == values(tpm, "properties-variable")["MAX_AUTH_FAIL"]

    with open_tpm(tpm.tcti) as opened:
        name = opened.srk.ensure().name.hex()
    assert tool("info")["srk_name"] == name
    lines = dict(line.split("\t") for line in tool.text("info").splitlines())
    assert lines["storage root key"] == name
    assert lines["known faults"] == "none that the version tells"
    assert lines["certified endorsement key"] == "none"
    assert lines["loaded objects"] == "0, 3 more possible"


def test_info_names_the_endorsement_keys_as_an_allow_list_takes_them(
    make_tpm: Callable[..., SimulatedTpm], tool: NounCommand, tmp_path: Path
) -> None:
    tpm = make_tpm(ek_certificates=True)
    said = tool("info", "--tcti", tpm.tcti)["endorsement_keys"]
    assert list(said) == ["H-3", "L-1"]
    tpm.tool("tpm2_nvread", "0x01c00002", "-o", "ek.der", cwd=tmp_path)
    command = ("openssl", "x509", "-inform", "DER", "-in", tmp_path / "ek.der", "-noout", "-pubkey")
    pem = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    der = subprocess.run(
        ("openssl", "pkey", "-pubin", "-outform", "DER"), input=pem, capture_output=True, check=True, timeout=60
    ).stdout
    assert said["L-1"] == ek_hash(der)
    assert f"certified endorsement key\tL-1 {said['L-1']}\n" in tool.text("info", "--tcti", tpm.tcti)

    tpm.tool("tpm2_nvundefine", "-C", "p", "0x01c00002")
    tpm.tool(
        "tpm2_nvdefine",
        "-C",
        "p",
        "0x01c00002",
        "-s",
        "8",
        "-a",
        "ppwrite|ppread|ownerread|authread|no_da|platformcreate",
    )
    (tmp_path / "garbage").write_bytes(b"\x30\x82\x00\x04\x05\x00\x05\x00")
    tpm.tool("tpm2_nvwrite", "-C", "p", "0x01c00002", "-i", "garbage", cwd=tmp_path)
    assert tool("info", "--tcti", tpm.tcti)["endorsement_keys"]["L-1"] is None
    assert "\tL-1 (its certificate is damaged)\n" in tool.text("info", "--tcti", tpm.tcti)


def test_known_faults_and_a_lockout_are_told(tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        facts = describe(opened)
    assert facts["vendor_name"]
    facts |= {"faults": ["CVE-2017-15361: its RSA keys can be computed"], "vendor_name": None}
    facts["condition"] |= {"locked_out": True, "lockout_counter": 3}
    rows = dict(info_rows(facts))
    assert rows["known faults"] == "CVE-2017-15361: its RSA keys can be computed"
    assert rows["vendor"] == "IBM"
    assert rows["wrong authorization values"].startswith("3 of 3, ")
    assert rows["wrong authorization values"].endswith("; it is locked")


def test_capabilities_are_those_that_tpm2_getcap_lists(tool: NounCommand, tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened:
        opened.srk.ensure()
    said = tool("capabilities")
    alike = {"kdf1_sp800_56a": "kdf1-sp800-56a", "kdf1_sp800_108": "kdf1-sp800-108"}
    names = [alike.get(name, name) for name in listed(tpm, "algorithms")]
    assert len(said["algorithms"]) == len(names)
    assert set(names) == set(said["algorithms"])
    assert len(said["curves"]) == len(re.findall("TPM2_ECC", tpm.tool("tpm2_getcap", "ecc-curves").stdout))
    assert {"p256", "p384"} <= set(said["curves"])
    commands = re.findall(
        r"^(?:TPM2_CC_)?(\w+):\n(?:.*\n)*? +commandIndex: 0x(\w+)$",
        tpm.tool("tpm2_getcap", "commands").stdout,
        re.MULTILINE,
    )
    assert said["commands"] == [command_name(int(index, 16)) for _, index in commands]
    assert {name for name, _ in commands if not name.startswith("0x")} <= set(said["commands"])
    assert said["persistent"] == tpm.handles("persistent") == ["0x81000001"]
    assert said["nv_indices"] == [handle.lower() for handle in tpm.handles("nv-index")]
    assert said["transient"] == []
    banks = re.findall(r"^  - (\w+): \[ 0", tpm.tool("tpm2_getcap", "pcrs").stdout, re.MULTILINE)
    assert said["pcr_banks"] == banks
    for key in ("fixed", "variable"):
        for name, value in values(tpm, f"properties-{key}").items():
            assert said[key][name] == value, name
    assert not [name for name in [*said["fixed"], *said["variable"]] if name.startswith("0x")]
    assert property_name(0x999) == "0x999"

    lines = tool.text("capabilities").splitlines()
    assert "algorithm\tecdsa\t" in lines
    assert "persistent object\t0x81000001\t" in lines
    assert "fixed property\tPCR_COUNT\t0x18" in lines


def test_pcrs_are_those_that_tpm2_pcrread_reads_and_the_quote_holds_16_of_them(
    tool: NounCommand, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    extend(tpm, 7)
    said = tool("pcrs", "--state-dir", tmp_path)
    found = re.findall(r"^ +(\d+) *: 0x(\w+)$", tpm.tool("tpm2_pcrread", "sha256").stdout, re.MULTILINE)
    assert said["pcrs"] == {"sha256": {number: value.lower() for number, value in found}}
    assert len(found) == 24
    assert said["quote"]["signed_pcrs"] == list(range(16))
    assert said["quote"]["attestation_key"]["of_the_device"] is False
    lines = [line.split("\t") for line in tool.text("pcrs", "--state-dir", tmp_path).splitlines()]
    assert [line[-1] for line in lines] == ["signed"] * 16 + ["not signed"] * 8
    assert lines[7][:3] == ["sha256", "7", "Secure Boot"]
    assert tpm.handles("persistent") == []


def test_pcr_values_that_are_not_the_quoted_ones_are_refused(
    tpm: SimulatedTpm, tool: NounCommand, tmp_path: Path
) -> None:
    proxy = TpmProxy(tpm, tmp_path)
    proxy.spoil(_PCR_READ, -1)
    assert "3 quotes did not fit the PCR values" in tool(
        "pcrs", "--state-dir", tmp_path, "--tcti", proxy.tcti, status=10
    )


def test_all_of_it_is_saved_for_a_diagnostic_bundle(tool: NounCommand, tpm: SimulatedTpm, tmp_path: Path) -> None:
    file = tmp_path / "tpm.json"
    assert tool("save-info", file, "--state-dir", tmp_path) == {"file": str(file), "failed": []}
    saved = json.loads(file.read_text())
    assert file.stat().st_mode & 0o777 == 0o644
    assert saved["info"]["vendor"] == "IBM"
    assert saved["capabilities"] | {"variable": {}} == tool("capabilities") | {"variable": {}}
    assert len(saved["pcrs"]["pcrs"]["sha256"]) == 24

    assert tool.text("save-info", file, "--state-dir", tmp_path) == f"{file}\n"  # the newer one is what counts
    assert "cannot write" in tool("save-info", tmp_path / "none" / "tpm.json", "--state-dir", tmp_path, status=8)
    tpm.stop()
    before = file.read_bytes()
    assert "no TPM answers" in tool("save-info", file, "--state-dir", tmp_path, status=3)
    assert file.read_bytes() == before


def test_what_cannot_be_said_keeps_nothing_else_out_of_the_bundle(
    tool: NounCommand, tpm: SimulatedTpm, tmp_path: Path
) -> None:
    keep_banks(tpm, "sha1")
    file = tmp_path / "tpm.json"
    assert tool("save-info", file, "--state-dir", tmp_path)["failed"] == ["pcrs"]
    saved = json.loads(file.read_text())
    assert "this TPM keeps no PCR bank sha256" in saved["pcrs"]["error"]
    assert saved["info"]["vendor"] == "IBM"
    assert tool.text("save-info", file, "--state-dir", tmp_path) == f"{file} (failed: pcrs; it says why)\n"


def test_what_is_in_the_storage_root_keys_place_is_named(tool: NounCommand, tpm: SimulatedTpm) -> None:
    with open_tpm(tpm.tcti) as opened, opened.create_primary(attestation_template()) as other:
        opened.persist(other, SRK_HANDLE)
    assert "is occupied by something else" in tool("info")["srk_trouble"]
    assert "storage root key\tthe storage root key's handle 0x81000001 is occupied" in tool.text("info")


def test_nothing_is_written_to_the_tpm(
    tool: NounCommand, tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = CommandTrace(tpm, tmp_path, monkeypatch)
    tool("save-info", tmp_path / "tpm.json", "--state-dir", tmp_path, "--tcti", trace.tcti)
    sent = trace.commands()
    assert [name for name in sent if _WRITES.search(name)] == []
    assert sent.count("CreatePrimary") == sent.count("CreateLoaded") == 1
    assert sent.count("FlushContext") == 2


def test_a_terminal_gets_tables(tpm: SimulatedTpm) -> None:
    lines = on_a_terminal([sys.executable, "-m", "tpm_mtls", "tpm", "info", "--tcti", tpm.tcti])
    assert re.search(r"what +value", lines[1])
    assert any(re.search(r"vendor +IBM", line) for line in lines)


@pytest.mark.parametrize("verb", ["info", "capabilities", "pcrs", "save-info"])
def test_every_command_has_an_example_and_says_what_is_wrong(tool: NounCommand, verb: str, tmp_path: Path) -> None:
    assert f"Example: tpm-mtls tpm {verb}" in tool.text(verb, "--help")
    file = [tmp_path / "file"] if verb == "save-info" else []
    assert "there is no TPM at /nowhere" in tool(verb, *file, "--tcti", "device:/nowhere", status=3)
