"""The README's first screen is true: the demo runs, and says what the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

ROOT = Path(__file__).parents[2]

# what differs from run to run
_CHANGING = [
    (r"127\.0\.0\.1[:,](port=)?\d+", "ADDRESS"),
    (r"\b[0-9a-f]{38,40}\b", "SERIAL"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|\+00:00)", "TIME"),
    (r"\d+\.\d\d ms", "MILLISECONDS"),
    (r"in \d+ seconds", "in N seconds"),
]


def _masked(text: str) -> list[str]:
    for pattern, word in _CHANGING:
        text = re.sub(pattern, word, text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _shown_in_the_readme() -> list[str]:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```console\n\$ \./run demo\n(.*?)```", readme, flags=re.DOTALL)
    assert block is not None, "the README shows no ./run demo"
    return [line for line in _masked(block[1]) if line != "…"]


def test_the_demo_tells_what_the_readme_shows() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py"], capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    told = iter(_masked(done.stdout))
    for line in _shown_in_the_readme():
        assert line in told, f"the demo does not say (in this order): {line}"


def test_the_demo_stops_with_the_reason_when_a_step_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--tcti", "swtpm:host=127.0.0.1,port=1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "no TPM answers at swtpm:host=127.0.0.1,port=1" in done.stdout
    assert "tpm-mtls: error: the demo stopped: expected exit status 0, got 3" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_breaks_off_removes_its_key_from_the_given_tpm(tmp_path: Path, tpm: SimulatedTpm) -> None:
    broken = tmp_path / "openssl"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--tcti", tpm.tcti],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 1
    assert "removed 0x81000100" in done.stdout
    assert "tpm-mtls: error: the demo stopped: expected exit status 0, got 1" in done.stderr
    assert tpm.handles("persistent") == ["0x81000001"]
