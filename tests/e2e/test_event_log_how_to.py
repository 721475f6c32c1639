"""docs/how-to/read-the-event-log.md: its commands in their order, on a simulated machine."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.event_logs import boot, changed, recorded, to_bytes, with_digest_of
from support.pe_programs import pe_program
from support.policies import Operator
from tpm_mtls.pcr.authenticode import program_digests
from tpm_mtls.pcr.logs import KERNEL_LOG

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm
    from tpm_mtls.event_log import Entry, EventLog

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "read-the-event-log.md").read_text()
BLOCKS = {
    part.partition("\n")[0]: re.findall(r"^```sh\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    for part in TEXT.split("\n## ")
}
KERNEL = pe_program(b"Linux 6.18")


class Machine:
    """A machine that boots, and on which the how-to's commands are typed; its kernel shows the event log in a file."""

    def __init__(self, tpm: SimulatedTpm, folder: Path) -> None:
        self._tpm = tpm
        self._folder = folder
        self._environment = os.environ | {"TPM_MTLS_TCTI": tpm.tcti}
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def boots(self, log: EventLog) -> None:
        boot(self._tpm, log)
        (self._folder / "kernel.log").write_bytes(to_bytes(log))

    def types(self, script: str, *, status: int = 0) -> list[str]:
        """The lines that the commands answer."""
        script = script.replace(str(KERNEL_LOG), "kernel.log").replace("pcr diff", "pcr diff --event-log kernel.log")
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == status, done.stderr
        return done.stdout.splitlines()


def update(entries: list[Entry]) -> None:
    digests = program_digests(KERNEL, entries[35].digests, "the kernel")
    entries[34] = with_digest_of(entries[34], KERNEL)
    entries[35] = dataclasses.replace(entries[35], digests=digests)


def test_the_how_to(tpm: SimulatedTpm, tmp_path: Path) -> None:
    machine, first = Machine(tpm, tmp_path), recorded("uefi-secureboot")
    machine.boots(first)

    read = machine.types(BLOCKS["Read it"][0])

    assert "23\t4\tboot loader\tnothing\tprogram \\EFI\\BOOT\\BOOTX64.EFI" in read
    assert len([line for line in read if line.startswith("sha256\t")]) == 24
    keep, compare = BLOCKS["Find out what changed"]
    machine.types(keep)
    assert machine.types(compare)[0].startswith("nothing differs: PCRs 0, 2, 4, 7, 8, 9 (sha256)")

    (tmp_path / "vmlinuz-6.18").write_bytes(KERNEL)
    Operator(tmp_path)
    approved = machine.types(BLOCKS["Approve an update before it is booted"][0])

    assert approved[-1] == "image-42.signed-policy.json"
    machine.boots(changed(first, update))
    lines = machine.types(compare, status=4)
    shown = [re.sub(r"20\d\d-[^)]+", "2026-11-22T03:00:00Z", line) for line in lines[:5]]
    assert "\n".join(shown) in TEXT
    assert machine.types("tpm-mtls pcr diff image-42.json")[0].startswith("nothing differs: PCRs 4, 7, 9 (sha256)")


def test_one_measurement_more(tpm: SimulatedTpm, tmp_path: Path) -> None:
    (tmp_path / "configuration").write_text("what is measured\n")
    one, other = Machine(tpm, tmp_path).types(BLOCKS["One measurement more"][0])
    assert one == other
    tpm.tool("tpm2_pcrevent", "8", "configuration", cwd=tmp_path)
    assert Machine(tpm, tmp_path).types("tpm-mtls pcr read --pcrs sha256:8") == [one]


def test_all_causes_are_told() -> None:
    from tpm_mtls.pcr.explain import Cause

    for cause in Cause:
        assert f"`{cause}`" in TEXT
