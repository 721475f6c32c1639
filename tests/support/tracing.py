"""Commands of real programs as bytes, with the TPM's responses: what libtss2 itself captured."""

from __future__ import annotations

import os
import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

_PACKET, _HEADERS = 6, 28 + 40  # pcapng's enhanced packet; its header, IPv4 and TCP

Exchanged = list[tuple[bytes, bytes]]
"""Commands and their responses."""


class Recorder:
    """Runs tpm2-tools and keeps what they exchanged with ``tpm``; ``file`` is libtss2's capture of the last one."""

    def __init__(self, tpm: SimulatedTpm, folder: Path) -> None:
        self._tcti = f"pcap:{tpm.tcti}"
        self.file = folder / "recorded.pcapng"
        self._folder = folder

    def __call__(self, *command: str, check: bool = True, stdin: bytes = b"") -> Exchanged:
        """Runs ``command`` in the folder; what it exchanged."""
        self.file.unlink(missing_ok=True)
        subprocess.run(
            command,
            env=os.environ | {"TPM2TOOLS_TCTI": self._tcti, "TCTI_PCAP_FILE": str(self.file)},
            cwd=self._folder,
            check=check,
            input=stdin,
            capture_output=True,
            timeout=60,
        )
        return pairs(self.file.read_bytes())


def pairs(capture: bytes) -> Exchanged:
    """The commands and responses in the pcapng file ``capture``."""
    messages = []
    offset = 0
    while offset < len(capture):
        kind, length = struct.unpack_from("<II", capture, offset)
        if kind == _PACKET:
            (size,) = struct.unpack_from("<I", capture, offset + 20)
            messages.append(capture[offset + _HEADERS : offset + 28 + size])
        offset += length
    return list(zip(messages[::2], messages[1::2], strict=True))
