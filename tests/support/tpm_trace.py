"""Counting the commands that this process sends to a simulated TPM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.trace import read_trace

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from support.tpm import SimulatedTpm


class CommandTrace:
    """What is sent to ``tpm`` through the TCTI string ``tcti``, as libtss2 writes it down."""

    def __init__(self, tpm: SimulatedTpm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._number = 0
        self.tcti = f"pcap:{tpm.tcti}"
        self.restart()

    def restart(self) -> None:
        """Connections that are opened from now on write to a new file."""
        self._number += 1
        self._monkeypatch.setenv("TCTI_PCAP_FILE", str(self._file))

    def commands(self) -> list[str]:
        """The names of the commands since the last `restart`, refused ones with their response code."""
        return [
            each.name if not each.response else f"{each.name}={each.response:#x}" for each in read_trace(self._file)
        ]

    def captured(self) -> bytes:
        """Every byte that crossed the bus since the last `restart`, and the capture's own headers."""
        return self._file.read_bytes()

    @property
    def _file(self) -> Path:
        return self._folder / f"commands-{self._number}.pcapng"
