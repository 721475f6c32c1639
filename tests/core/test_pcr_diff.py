"""``tpm-mtls pcr diff``: simulated TPMs that booted what real machines did."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from support.event_logs import (
    boot,
    changed,
    entry,
    keep_banks,
    made,
    recorded,
    to_bytes,
    values_of,
    with_data,
    with_digest_of,
)
from support.noun_command import NounCommand
from support.policies import Operator, extend, make_policy_key, pcr_policy
from tpm_mtls.cli import run
from tpm_mtls.event_log import EventLog, EventType
from tpm_mtls.identity import IdentityRecord, save_record
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.pcr.explain import Cause, explain
from tpm_mtls.policy.check import PcrDiffers
from tpm_mtls.policy.counters import not_beyond
from tpm_mtls.policy.document import encode
from tpm_mtls.policy.states import encode_state, state_of
from tpm_mtls.tpm import open_tpm

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.event_log import Entry

PCRS = "sha256:0,4,7,8,9"


class Machine:
    """A machine that boots, with its recorded state and event logs in files."""

    def __init__(self, tpm: SimulatedTpm, folder: Path, command: NounCommand) -> None:
        self.tpm = tpm
        self._folder = folder
        self._command = command
        self.before = recorded("uefi-secureboot")

    def boots(self, log: EventLog) -> None:
        """Boots what ``log`` says."""
        boot(self.tpm, log)
        self.write("now.log", log)

    def write(self, name: str, log: EventLog) -> None:
        (self._folder / name).write_bytes(to_bytes(log))

    def record(self) -> None:
        """Records state and event log of a first boot."""
        self.boots(self.before)
        self.write("before.log", self.before)
        values = self._command("predict", "--pcrs", PCRS, "--out", "state.json", "--description", "before")["pcrs"]
        assert values == self._command("read", "--pcrs", PCRS)["pcrs"]


@pytest.fixture
def pcr(capsys: pytest.CaptureFixture[str]) -> NounCommand:
    return NounCommand("pcr", capsys)


@pytest.fixture
def machine(tpm: SimulatedTpm, tmp_path: Path, pcr: NounCommand, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    made = Machine(tpm, tmp_path, pcr)
    made.record()
    return made


def update(entries: list[Entry]) -> None:
    """Another kernel with another command line."""
    for number in (34, 35, 38):
        entries[number] = with_digest_of(entries[number], b"6.18")
    entries[36] = with_data(entries[36], b"kernel_cmdline: /vmlinuz quiet\0")


LOGS = ("--event-log", "now.log")
BOTH = (*LOGS, "--log-before", "before.log")


def test_nothing_differs(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(machine.before)
    found = pcr("diff", "state.json", *BOTH)
    assert (found["same"], found["differences"], found["others"]) == (True, [], [])
    assert pcr.text("diff", "state.json", *BOTH).startswith("nothing differs: PCRs 0, 4, 7, 8, 9 (sha256) as on 20")


def test_both_logs_explain_all_of_it(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(changed(machine.before, update))

    found = pcr("diff", "state.json", *BOTH, status=4)

    assert "the PCRs are not as in state.json" in pcr.errors
    assert not found["same"]
    assert [(each["pcr"], each["cause"]) for each in found["differences"]] == [(each, "changes") for each in (4, 8, 9)]
    told = [(change["component"], change["kind"]) for each in found["differences"] for change in each["changes"]]
    assert told == [
        ("kernel", "changed"),
        ("kernel command line", "changed"),
        ("kernel", "changed"),
        ("kernel command line", "changed"),
    ]
    [line] = found["differences"][1]["changes"]
    assert line["text"].endswith("→ kernel_cmdline: /vmlinuz quiet")
    assert (line["before"]["number"], line["after"]["number"]) == (36, 36)
    assert line["after"]["text"] == "kernel_cmdline: /vmlinuz quiet"


def test_a_person_reads_what_changed(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(changed(machine.before, update))
    lines = pcr.text("diff", "state.json", *BOTH, status=4).splitlines()
    assert lines[0] == "PCR 4 (sha256), boot loader, differs"
    assert lines[1].startswith("  then  8a4e5ab567127b35c6fa31778ac6cc0e07f629597f03f86ddbbcf7a31e797c5a  (20")
    assert lines[2].startswith("  now   ")
    assert lines[3] == "  these differences between the two event logs explain it:"
    assert lines[4].startswith("    kernel changed: program without a file name (sha256 ")


def test_a_measurement_after_the_boot_is_in_no_log(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(machine.before)
    extend(machine.tpm, 7)
    for logs in (LOGS, BOTH):
        [found] = pcr("diff", "state.json", *logs, status=4)["differences"]
        assert (found["pcr"], found["component"], found["cause"]) == (7, "Secure Boot", "after-boot")
        assert found["text"].startswith("the machine booted what was recorded; afterwards something was measured")
        assert (found["changes"], found["measured"]) == ([], [])


def test_what_came_on_top_is_told_without_the_earlier_log(machine: Machine, pcr: NounCommand) -> None:
    def more(entries: list[Entry]) -> None:
        entries.append(dataclasses.replace(entries[33], data=b"grub_cmd: insmod x\0"))

    machine.boots(changed(machine.before, more))
    [found] = pcr("diff", "state.json", *LOGS, status=4)["differences"]
    assert (found["pcr"], found["cause"]) == (8, "added")
    assert [each["text"] for each in found["changes"]] == ["boot loader's commands appeared: grub_cmd: insmod x"]


def test_without_the_earlier_log_the_present_measurements_are_told(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(changed(machine.before, update))
    found = pcr("diff", "state.json", *LOGS, status=4)["differences"][0]
    assert (found["pcr"], found["cause"]) == (4, "one-sided")
    assert [each["text"] for each in found["measured"]][-1] == "program without a file name"
    text = pcr.text("diff", "state.json", *LOGS, status=4)
    assert "  no event log leads to the recorded value; these measurements led to the present one:\n" in text
    assert "\n    kernel: program without a file name\n" in text


def test_another_boots_earlier_log_does_not_count(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(changed(machine.before, update))
    machine.write("before.log", recorded("uefi"))
    found = pcr("diff", "state.json", *BOTH, status=4)["differences"][0]
    assert (found["pcr"], found["cause"]) == (4, "one-sided")


def test_a_log_that_is_not_of_this_boot_is_told(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(changed(machine.before, update))
    machine.write("now.log", changed(machine.before, lambda entries: entries.pop(23)))
    found = pcr("diff", "state.json", *BOTH, status=4)["differences"][0]
    assert (found["pcr"], found["cause"]) == (4, "unexplained")
    assert [each["text"] for each in found["changes"]] == [r"boot loader vanished: program \EFI\BOOT\BOOTX64.EFI"]
    found = pcr("diff", "state.json", *LOGS, status=4)["differences"][0]
    assert (found["cause"], found["changes"], len(found["measured"])) == ("unexplained", [], 4)


def test_without_a_log_the_values_are_compared(machine: Machine, pcr: NounCommand) -> None:
    """On this machine the kernel has none."""
    extend(machine.tpm, 7)
    found = pcr("diff", "state.json", status=4)
    [differs] = found["differences"]
    assert (differs["cause"], differs["text"]) == ("no-log", "no event log to explain it")
    assert found["event_log"] is None
    assert "there is no event log at /sys/kernel/security/tpm0/" in found["why_no_event_log"]
    assert pcr.text("diff", "state.json", status=4).splitlines()[-1] == found["why_no_event_log"]


def test_the_earlier_log_alone_says_what_the_values_were(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(machine.before)
    assert pcr("diff", *BOTH)["same"]
    machine.boots(changed(machine.before, update))
    found = pcr("diff", *BOTH, status=4)
    assert found["baseline"] == "before.log"
    assert [(each["bank"], each["pcr"], each["cause"]) for each in found["differences"]] == [
        ("sha256", each, "changes") for each in (4, 8, 9)
    ]


def test_a_log_without_a_bank_of_the_tpm_is_told(machine: Machine, pcr: NounCommand) -> None:
    machine.write("before.log", recorded("uefi-sha256only"))
    keep_banks(machine.tpm, "sha1", "sha384")
    assert "this TPM keeps none of the PCR banks of before.log" in pcr("diff", "--log-before", "before.log", status=4)
    [found, *_] = pcr("diff", "state.json", *BOTH, status=4)["differences"]
    assert (found["now"], found["cause"]) == (None, "no-log")
    assert "  now   this TPM does not keep the bank\n" in pcr.text("diff", "state.json", *BOTH, status=4)


def test_logs_without_a_bank_in_common_are_told(machine: Machine, pcr: NounCommand) -> None:
    machine.boots(changed(machine.before, update))
    machine.write("before.log", recorded("uefi-sha256only"))
    machine.write("now.log", made(entry(7, EventType.EV_SEPARATOR, bytes(4), banks=("sha1",)), banks=("sha1",)))
    assert "the two event logs have no PCR bank in common" in pcr("diff", "state.json", *BOTH, status=5)


def test_files_that_are_damaged_or_missing_are_told(machine: Machine, pcr: NounCommand, tmp_path: Path) -> None:
    machine.boots(machine.before)
    (tmp_path / "now.log").write_bytes(b"damaged")
    assert "now.log: malformed event log" in pcr("diff", "state.json", *LOGS, status=5)
    assert "no such file" in pcr("diff", "state.json", "--log-before", "none", status=8)
    assert "no such file" in pcr("diff", "state.json", "--event-log", "none", status=8)
    assert "no such file" in pcr("diff", "none.json", status=8)
    (tmp_path / "state.json").write_text("{}")
    assert "is no recorded state" in pcr("diff", "state.json", status=5)
    assert "there is no identity in" in pcr("diff", "--state-dir", tmp_path / "none", status=10)


# --- policies


def test_a_keys_policy_is_compared(machine: Machine, pcr: NounCommand, tmp_path: Path) -> None:
    values = {int(each): value for each, value in pcr("read", "--pcrs", "sha256:4,7")["pcrs"]["sha256"].items()}
    document = make_policy_key(machine.tpm, tmp_path / "key.pem", pcr_policy(values))
    machine.boots(changed(machine.before, update))
    for what in ("key.pem", f"{document.name}.policy.json"):
        found = pcr("diff", what, *BOTH, status=4)
        assert [(each["pcr"], each["cause"]) for each in found["differences"]] == [(4, "changes")]
        assert found["baseline"] == what


def test_the_identitys_key_is_the_default(machine: Machine, pcr: NounCommand, tmp_path: Path, state_dir: Path) -> None:
    state_dir.mkdir()
    document = make_policy_key(machine.tpm, state_dir / "device.key.pem", pcr_policy())
    save_record(state_dir, IdentityRecord(**IDENTITY, key_name=document.name))
    found = pcr("diff", "--state-dir", state_dir, *LOGS, status=4)
    assert [(each["pcr"], each["cause"]) for each in found["differences"]] == [(7, "added")]
    assert len(found["differences"][0]["changes"]) == 9
    assert tmp_path in state_dir.parents


IDENTITY = {
    "device": "sensor-17",
    "key": "device.key.pem",
    "algorithm": "ecc-p256",
    "srk_name": "",
    "tpm_vendor": "",
    "tpm_firmware": "",
    "reset_count": 0,
    "ca_url": "",
    "enrolled_by": "token",
}


def test_signed_policies_are_compared(machine: Machine, pcr: NounCommand, tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    make_policy_key(machine.tpm, tmp_path / "key.pem", operator.authorize())
    assert "there is no policy signed by" in pcr("diff", "key.pem", *LOGS, status=4)["others"][0]
    signed = operator.sign(pcr_policy(), not_beyond(0x01500100, 1))
    (tmp_path / "a.signed-policy.json").write_bytes(encode(signed))
    for what in ("key.pem", "a.signed-policy.json"):
        found = pcr("diff", what, *LOGS, status=4)
        assert [each["pcr"] for each in found["differences"]] == [7]
        assert found["others"] == ["the counter 0x01500100 is not in this TPM"]
    assert "the counter 0x01500100 is not in this TPM\n" in pcr.text("diff", "key.pem", *LOGS, status=4)


def test_each_baseline_has_its_way_out(
    machine: Machine, pcr: NounCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fixed policy has no signer, and a state no TPM that holds it against anybody."""
    operator = Operator(tmp_path)
    signed = operator.sign(pcr_policy(), version=4)
    (tmp_path / "a.signed-policy.json").write_bytes(encode(signed))
    fixed = make_policy_key(machine.tpm, tmp_path / "fixed.pem", pcr_policy())
    make_policy_key(machine.tpm, tmp_path / "signed.pem", operator.authorize())
    state = state_of({"sha256": {7: b"\1" * 32}}, now=datetime(2026, 11, 22, tzinfo=UTC))
    (tmp_path / "old.json").write_bytes(encode_state(state))
    (tmp_path / "secret").write_text("secret")
    seal = ["seal", "--state-dir", "state", "--in", "secret"]
    assert run([*seal, "--pcr-values", "old.json", "--out", "fixed.sealed"]) == 0
    assert run([*seal, "--policy-signer", "operator.pem", "--out", "signed.sealed"]) == 0
    right = "if what has been booted is right"
    anew = (
        "tpm-mtls policy record --pcrs sha256:7 --out state.json, tpm-mtls policy sign --signer OPERATOR.key.pem "
        "--pcr-values state.json --version 5 --out new.signed-policy.json, "
        "tpm-mtls policy install new.signed-policy.json"
    )
    create = (
        f"boot what it is bound to; {right}, make a new key: tpm-mtls keygen create --pcrs sha256:7 --out new.key.pem"
    )
    newest = f"boot the image of the newest policy; {right}, have it signed with a higher version: {anew}"
    hints = {
        "old.json": f"{right}, record its state anew: tpm-mtls policy record --out state.json",
        "fixed.pem": create,
        f"{fixed.name}.policy.json": create,
        "signed.pem": f"{newest} --key signed.pem",
        "a.signed-policy.json": f"{right}, have it signed: {anew}",
        "fixed.sealed": (
            f"boot what it was sealed for; {right}, unseal it once more there and seal it here: "
            "tpm-mtls seal --pcrs sha256:7 --in SECRET --out fixed.sealed.new"
        ),
        "signed.sealed": newest,
    }
    for what, hint in hints.items():
        assert run(["pcr", "diff", what, *LOGS]) == 4
        assert capsys.readouterr().err.splitlines()[-1] == f"tpm-mtls: hint: {hint}", what
    assert pcr("diff", "old.json", *LOGS, status=4)["same"] is False


def test_a_key_without_a_policy_is_told(machine: Machine, pcr: NounCommand) -> None:
    with open_tpm(machine.tpm.tcti) as opened, opened.srk.create_key(KeyAlgorithm.ECC_P256) as key:
        opened.persist(key, 0x81000100)
    assert "the key has no policy" in pcr("diff", "handle:0x81000100", status=5)


# --- the rules alone


def differs(pcr: int, then: bytes, now: bytes | None, *, bank: str = "sha256") -> PcrDiffers:
    return PcrDiffers(bank, pcr, then.hex(), now.hex() if now is not None else None, "2026-11-22T03:00:00Z")


def test_a_bank_that_is_not_there_has_no_explanation() -> None:
    log = recorded("uefi-sha256only")
    for each in (differs(7, bytes(32), None), differs(7, bytes(48), bytes(48), bank="sha384")):
        [found] = explain([each], log, None)
        assert found.cause is Cause.NO_LOG


def test_a_type_in_the_log_explains_nothing_away() -> None:
    """Whoever says of a measurement that it extended nothing is found out by the value."""
    log = recorded("uefi-sha256only")

    def hide(entries: list[Entry]) -> None:
        entries[4] = dataclasses.replace(entries[4], type=EventType.EV_NO_ACTION)

    [found] = explain([differs(7, bytes(32), values_of(log)[7])], changed(log, hide), None)
    assert found.cause is Cause.UNEXPLAINED
