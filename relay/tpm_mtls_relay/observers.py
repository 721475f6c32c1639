"""What the options ask for between the retries and the TPM: trace, capture, counters, and the latency model.

Each is imported only when its option is given.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.options import Options
    from tpm_mtls_relay.tap import Listener
    from tpm_mtls_relay.wire import Exchange


class Observers:
    """``Tap(LatencyModel(transport))``, as far as ``options`` ask for them.

    Made before the TPM is opened, so that what the options name is checked first.

    Raises:
        OptionError: the latency model is none.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._listeners: list[Listener] = []

    def before(self, transport: Exchange) -> Exchange:
        """The layers that stand before ``transport``; it itself without any of the options."""
        layer = transport
        if self._listeners:
            from tpm_mtls_relay.tap import Tap  # noqa: PLC0415 - only if asked for

            layer = Tap(layer, self._listeners)
        return layer

    def close(self) -> None:
        """Writes what is still to be written, at the relay's end."""
