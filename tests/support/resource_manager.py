"""A resource manager that nobody of this project wrote, before a simulated TPM: tpm2-abrmd on a bus of its own."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

    from support.tpm import SimulatedTpm

TCTI = "tabrmd:bus_type=session"

_PATIENCE = 20.0  # seconds; it answers in half of one


@contextmanager
def running_resource_manager(tpm: SimulatedTpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The TCTI string of a tpm2-abrmd before ``tpm``, while the block lasts; only by it can ``tpm`` be reached then."""
    folder.mkdir()
    address = f"unix:path={folder}/bus.sock"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    with _program("dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={address}"):
        _wait((folder / "bus.sock").exists)
        with _program("tpm2-abrmd", "--session", "--allow-root", "--flush-all", f"--tcti={tpm.tcti}"):
            _wait(_answers)
            yield TCTI


def _answers() -> bool:
    asked = subprocess.run(["tpm2_getrandom", "-T", TCTI, "1"], env=_environment(), capture_output=True, check=False)
    return asked.returncode == 0


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "the resource manager does not start"
        time.sleep(0.05)


@contextmanager
def _program(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
