"""The how-tos about secrets and sealing: their commands in their order, on a simulated TPM and a file for a disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from support.agent_process import agent_process
from support.how_to import FOLDER, HowTo
from support.policies import Operator
from tpm_mtls import errors

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

TRY = "open --test-passphrase"


def test_unlock_a_disk(tpm: SimulatedTpm, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.touch()
    os.truncate(disk, 20 * 1024 * 1024)
    # no mapping is made: that would take a kernel of the test's own
    instead = {"/dev/sda3 data": "/dev/sda3", "/dev/sda3": "disk.img", "/boot/": "", "open --key": f"{TRY} --key"}
    how_to = HowTo("unlock-a-disk", tpm, tmp_path, instead)
    Operator(tmp_path)

    how_to.run_section("Make it")
    how_to.run_section("Open it at boot")
    (at_boot,) = how_to.blocks("Open it at boot", "console")
    how_to.run(at_boot.removeprefix("$ "))
    how_to.run(f"! head -c 64 /dev/zero |{at_boot.partition('|')[2]}")

    assert (tmp_path / "recovery.key").stat().st_mode & 0o777 == 0o600
    assert "PBKDF:      pbkdf2" in tpm.tool("/usr/sbin/cryptsetup", "luksDump", str(disk)).stdout
    refused, *_ = how_to.run_section("When something else was booted")
    assert "PCR 7 (sha256) differs" in refused.stderr
    assert "0x99d" in refused.stderr
    assert "PCR 7 (sha256)" in refused.stdout

    (tmp_path / "passphrase").write_text("correct horse")
    (tmp_path / "passphrase").chmod(0o600)
    (with_somebody,) = how_to.blocks("With somebody present", "console")
    how_to.run(with_somebody.replace("$ ", "").replace("--auth prompt", "--auth file:passphrase"))


def test_bind_a_telemetry_key(tpm: SimulatedTpm, tmp_path: Path) -> None:
    how_to = HowTo("bind-a-telemetry-key", tpm, tmp_path)
    how_to.run_section("Seal it")
    (used,) = how_to.run_section("Use it")
    assert re.fullmatch(r"[0-9a-f]{64} \*stdin\n", used.stdout)

    (refused,) = how_to.run_section("See it refused")

    assert refused.stdout == ""
    shown = re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-11-22T03:00:00Z", refused.stderr)
    shown = re.sub(rf" --state-dir {tmp_path}/\w+", "", shown)  # where the page has the default folder
    assert shown.strip() in how_to.text
    how_to.run_section("With tpm2-tools")
    assert not (tmp_path / "telemetry.key").exists()


def test_keep_a_secret(tpm: SimulatedTpm, tmp_path: Path) -> None:
    how_to = HowTo("keep-a-secret", tpm, tmp_path)
    assert how_to.blocks("Start the agent") == ["tpm-mtls agent run &\n"]
    with agent_process(tpm, tmp_path) as agent:
        where = {"TPM_MTLS_SOCKET": str(agent.socket)}
        (kept,) = how_to.run_section("Set, get, delete", **where)
        index, value, same_index = re.fullmatch(r"(0x015200..)\n(\S+)(0x015200..)\n", kept.stdout).groups()  # type: ignore[union-attr]  # else it is an AttributeError
        assert (value, same_index) == ("sk_live_abc123xyz", index)

        first, both, variable = how_to.run_section("Hand it to a program", **where)
        assert first.stdout.split() == ["19"]
        assert both.stdout.splitlines()[1:] == ["sk_live_new_key_456", "correct horse battery staple"]
        assert variable.stdout == "19\n"

        (program,) = how_to.blocks("From a program", "python")
        program = program.replace("Client()", f"Client({str(agent.socket)!r})")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "6\n"

        (removed,) = how_to.run_section("Remove it", **where)
        assert removed.stdout == "deleted\n"
        agent.end()


def test_the_errors_that_are_told_are_those_that_there_are() -> None:
    text = (FOLDER / "keep-a-secret.md").read_text()
    rows = re.findall(r"^\| `(\w+Error)`.*? \| (\d+) \|", text, re.MULTILINE)
    assert len(rows) >= 6
    for name, status in rows:
        assert getattr(errors, name).exit_code == int(status)
