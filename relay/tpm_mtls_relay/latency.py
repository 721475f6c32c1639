"""A simulated TPM, as slow as a chip: ``--latency-model``."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.wire import Exchange


class Model:
    """How long a chip takes.

    Attributes:
        default: seconds for a command of which nothing else is said.
    """

    __slots__ = ("default",)

    def __init__(self, default: float) -> None:
        self.default = default

    def seconds(self, command: bytes, response: bytes) -> float:  # noqa: ARG002 - the simplest case
        """How long the chip takes for ``command``, to which it answers ``response``."""
        return self.default


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
