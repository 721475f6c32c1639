"""The relay's shortcuts before a simulated TPM, in this process, with what reaches the TPM written down."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.tpm_commands import DirectTpm, get_capability
from tpm_mtls_relay.loaded.tracking import Tracking
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import code_of
from tpm_mtls_relay.shortcuts.caches import Answers
from tpm_mtls_relay.shortcuts.shortcuts import Shortcuts
from tpm_mtls_relay.shortcuts.virtual_handles import FIRST, VirtualHandles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tpm import SimulatedTpm

_NAMES = {code: name for name, code in vars(commands).items() if name.isupper() and isinstance(code, int)}
PROPERTIES = get_capability(6, 0, 127)
ALGORITHMS = get_capability(0, 0, 169)
COMMANDS = get_capability(2, 0, 256)


class TappedShortcuts:
    """The layers; ``sent`` are the names of the commands that reached the TPM since it was last cleared.

    Attributes:
        time: what the layers take for the time, in seconds; add to it.
        lies: responses by TPM_CC that are given instead of the TPM's.
    """

    def __init__(self, tpm: SimulatedTpm, folder: Path | None, first: int) -> None:
        self.time = time.time()
        self.sent: list[str] = []
        self.lies: dict[int, bytes] = {}
        self._tpm = DirectTpm(tpm)
        self.tracking = Tracking(self._send)
        answers = Answers(folder and str(folder), tpm.tcti, now=lambda: self.time)
        handles = VirtualHandles(self.tracking.objects, first=first)
        self.layer = Shortcuts(self.tracking, self.tracking.objects, answers, handles=handles, clock=lambda: self.time)

    def __call__(self, command: bytes) -> bytes:
        """The response to ``command``."""
        return self.layer(command)

    def sent_for(self, command: bytes) -> list[str]:
        """What reached the TPM because of ``command``."""
        self.sent.clear()
        self(command)
        return list(self.sent)

    def _send(self, command: bytes) -> bytes:
        self.sent.append(_NAMES.get(code_of(command), hex(code_of(command))))
        return self.lies.get(code_of(command)) or self._tpm(command)


@contextmanager
def shortcuts_before(tpm: SimulatedTpm, *, folder: Path | None = None, first: int = FIRST) -> Iterator[TappedShortcuts]:
    """Layers that have asked what the provider asks first; what they leave in the TPM is flushed.

    Args:
        tpm: the TPM.
        folder: where they keep answers.
        first: the first virtual handle.
    """
    layers = TappedShortcuts(tpm, folder, first)
    for command in (PROPERTIES, ALGORITHMS, COMMANDS):
        layers(command)
    try:
        yield layers
    finally:
        layers.tracking.close()
