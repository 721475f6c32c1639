"""The demo's chapter on attestation: a device shows what it booted, boots something else, and is refused by name."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

from stage import DemoFailedError, Stage

if TYPE_CHECKING:
    from pathlib import Path

_STATE, _RUN = "third", "third-run"
_SECURE_BOOT = 7  # TCG PC Client Platform Firmware Profile, 3.3.4: where its state is measured
_PATIENCE = 30.0  # seconds for the backend's verdict


def tell_attestation(stage: Stage, backend: str, database: str, tcti: str) -> None:
    """Tells it with the device in the folder ``third``, whose TPM is at ``tcti``, and the running ``backend``."""
    stage.tell.chapter(
        "Proof: the backend knows what a device booted",
        "The device's agent shows it: a quote, signed in the TPM, of what the firmware measured. /telemetry is for "
        "devices only that did. The first quote is taken as the device's baseline.",
    )
    device = json.loads((stage.folder / _STATE / "identity.json").read_text())["device"]
    folders = ("--state-dir", _STATE, "--run-dir", _RUN)
    operator = ("--database", database)
    (stage.folder / "reading.json").write_text(json.dumps({"temperature": 21.5}))
    post = (
        "client",
        "post",
        f"{backend}/telemetry",
        "--data-file",
        "reading.json",
        "--state-dir",
        _STATE,
        "--tcti",
        tcti,
    )

    agent = ("agent", "run", *folders, "--tcti", tcti, "--backend", backend, "--socket", "third.sock")
    stage.serve(*agent, begins="third.sock")
    shown = _next_verdict(stage.folder, 0)
    stage.run(*post)
    stage.tool("tpm2_pcrextend", "-T", tcti, f"{_SECURE_BOOT}:sha256={hashlib.sha256(b'another state').hexdigest()}")
    stage.run("agent", "check", *folders)
    shown = _next_verdict(stage.folder, shown)
    stage.run(*post, expect=7)
    seen = stage.run("server", "device", "show", device, *operator)
    stage.expect(f"PCR {_SECURE_BOOT} (Secure Boot)" in seen, "the backend does not name what differs")
    stage.run("server", "device", "approve", device, *operator)
    stage.run("agent", "check", *folders)
    _next_verdict(stage.folder, shown)
    stage.run(*post)
    stage.tell.proof("refused with the PCR's name while it was not what was expected, let in when somebody approved it")


def _next_verdict(folder: Path, before: int) -> int:
    """How many verdicts the agent had, once they are more than ``before``."""
    record, end = folder / _RUN / "duties.json", time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        count: int = json.loads(record.read_text())["attestations"] if record.exists() else 0
        if count > before:
            return count
        time.sleep(0.05)
    raise DemoFailedError("the backend gave no verdict")
