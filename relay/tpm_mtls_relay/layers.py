"""The layers, put together."""

from __future__ import annotations

from tpm_mtls_relay.observers import Observers
from tpm_mtls_relay.policy_authorization import PolicyAuthorization
from tpm_mtls_relay.tracking import Tracking
from tpm_mtls_relay.transport import open_transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.objects import Objects
    from tpm_mtls_relay.options import Options
    from tpm_mtls_relay.wire import Exchange


class Layers:
    """The way of a command through all layers.

    Attributes:
        objects: what `Tracking` knows.
    """

    def __init__(self, options: Options) -> None:
        """Puts together what ``options`` ask for.

        Raises:
            TransportError: no TPM answers.
        """
        self._observers = Observers(options)
        self._transport = open_transport(options.tcti)
        self._tracking = Tracking(self._observers.before(self._transport))
        self.objects: Objects = self._tracking.objects
        self._outermost: Exchange = self._tracking
        if not options.pass_through:
            self._outermost = PolicyAuthorization(self._outermost, self.objects, options.policies)

    def __call__(self, command: bytes) -> bytes:
        """The response to ``command``; raises `RelayError`."""
        return self._outermost(command)

    def close(self) -> None:
        """Leaves nothing in the TPM, and gives it back."""
        self._tracking.close()
        self._transport.close()
        self._observers.close()


def build_layers(options: Options) -> Layers:
    """The layers that ``options`` ask for; the caller closes them."""
    return Layers(options)
