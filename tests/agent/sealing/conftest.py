"""What the tests of sealing begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.seal_command import AUTH, OWNER, WRONG, SealCommand

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm


@pytest.fixture
def sealing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tpm: SimulatedTpm) -> None:
    """A TPM for all commands, and authorization values in files of the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPM_MTLS_TCTI", tpm.tcti)
    for name, value in (("auth", AUTH), ("owner", OWNER), ("wrong", WRONG)):
        (tmp_path / name).write_text(value)
        (tmp_path / name).chmod(0o600)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> SealCommand:
    return SealCommand(monkeypatch, capfdbinary)
