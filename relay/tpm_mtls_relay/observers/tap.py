"""Tells listeners what reaches the TPM: every command, its response, and how long the TPM took."""

from __future__ import annotations

import time

from tpm_mtls_relay.errors import RelayError
from tpm_mtls_relay.messages.wire import refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tpm_mtls_relay.messages.wire import Exchange

    Listener = Callable[[bytes, bytes, float, float], None]
    """Is told the command, the response, when it was sent (seconds since the epoch), and the seconds it took."""


class Tap:
    """The layer that tells ``listeners``; what no TPM answered is told as the relay's own refusal.

    A listener never raises, and never changes what the program gets.
    """

    def __init__(self, below: Exchange, listeners: Sequence[Listener]) -> None:
        self._below = below
        self._listeners = listeners

    def __call__(self, command: bytes) -> bytes:
        """Passes ``command`` on, and tells the listeners about it and its response."""
        started, before = time.time(), time.monotonic()
        try:
            response = self._below(command)
        except RelayError as error:
            self._tell(command, refusal(error), started, time.monotonic() - before)
            raise
        self._tell(command, response, started, time.monotonic() - before)
        return response

    def _tell(self, command: bytes, response: bytes, started: float, seconds: float) -> None:
        for listener in self._listeners:
            listener(command, response, started, seconds)
