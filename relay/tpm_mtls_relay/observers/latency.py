"""A simulated TPM, as slow as a chip: ``--latency-model``, for development and measurements."""

from __future__ import annotations

import fcntl
import os
import time

from tpm_mtls_relay.messages.command_names import command_name
from tpm_mtls_relay.messages.wire import code_of
from tpm_mtls_relay.observers.facts import facts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.messages.wire import Exchange

DEFAULT = "default"

_NAME_LIMIT = 100


class Model:
    """How long a chip takes.

    Attributes:
        default: seconds for a command of which nothing else is said, and for one that is refused.
        commands: by the commands' names: seconds by the key's kind (``ecc-p256``, ``rsa-2048``), and `DEFAULT`.
    """

    __slots__ = ("commands", "default")

    def __init__(self, default: float, commands: dict[str, dict[str, float]]) -> None:
        self.default = default
        self.commands = commands

    def seconds(self, command: bytes, response: bytes) -> float:
        """How long the chip takes for ``command``, to which it answers ``response``."""
        kinds = self.commands.get(command_name(code_of(command)))
        if kinds is None or code_of(response):
            return self.default
        kind = facts_of(command, response)[1] if len(kinds) > 1 or DEFAULT not in kinds else DEFAULT
        return kinds.get(kind, kinds.get(DEFAULT, self.default))


class LatencyModel:
    """The layer that waits until a chip like ``model`` would have answered.

    A chip does one command after the other, of whatever program. So the relays of one TPM take turns, where this user
    has a folder for their lock (`runtime_folder`).
    """

    def __init__(self, below: Exchange, model: Model, *, turns: int | None = None) -> None:
        """``turns`` is the descriptor of a file that all relays of the TPM lock."""
        self._below = below
        self._model = model
        self._turns = turns

    def __call__(self, command: bytes) -> bytes:
        """Passes ``command`` on; the response comes back when the chip would have given it."""
        if self._turns is None:
            return self._slowly(command)
        fcntl.flock(self._turns, fcntl.LOCK_EX)
        try:
            return self._slowly(command)
        finally:
            fcntl.flock(self._turns, fcntl.LOCK_UN)

    def _slowly(self, command: bytes) -> bytes:
        before = time.monotonic()
        response = self._below(command)
        time.sleep(max(0.0, self._model.seconds(command, response) - (time.monotonic() - before)))
        return response


def open_turns(tcti: str, folder: str | None) -> int | None:
    """The descriptor of the file in ``folder`` that the relays of the TPM at ``tcti`` lock; none without a folder."""
    if folder is None:
        return None
    name = "".join(letter if letter.isalnum() else "-" for letter in tcti)[-_NAME_LIMIT:]
    return os.open(f"{folder}/latency-{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
