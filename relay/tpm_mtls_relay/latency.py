"""A simulated TPM, as slow as a chip: ``--latency-model``, for development and measurements."""

from __future__ import annotations

import time

from tpm_mtls_relay.command_names import command_name
from tpm_mtls_relay.facts import facts_of
from tpm_mtls_relay.wire import code_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.wire import Exchange

DEFAULT = "default"


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
    """The layer that waits until a chip like ``model`` would have answered."""

    def __init__(self, below: Exchange, model: Model) -> None:
        self._below = below
        self._model = model

    def __call__(self, command: bytes) -> bytes:
        """Passes ``command`` on; the response comes back when the chip would have given it."""
        before = time.monotonic()
        response = self._below(command)
        time.sleep(max(0.0, self._model.seconds(command, response) - (time.monotonic() - before)))
        return response
