"""The layers, put together."""

from __future__ import annotations

from tpm_mtls_relay.connection.opening import is_raw, open_transport
from tpm_mtls_relay.connection.retrying import Retrying
from tpm_mtls_relay.connection.transport import Connection, Limits
from tpm_mtls_relay.errors import RelayError
from tpm_mtls_relay.loaded.objects import Objects
from tpm_mtls_relay.loaded.tracking import Tracking
from tpm_mtls_relay.observers.observers import Observers
from tpm_mtls_relay.policies.authorization import PolicyAuthorization
from tpm_mtls_relay.runtime_folder import runtime_folder
from tpm_mtls_relay.shortcuts.caches import Answers
from tpm_mtls_relay.shortcuts.shortcuts import Shortcuts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.connection.transport import Transport
    from tpm_mtls_relay.loaded.ledger import Ledger
    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.options import Options

_LAST_LIMIT = 5.0
"""Seconds for each command at the end: libtss2, and with it the program, waits for the relay."""


class Layers:
    """The way of a command through all layers.

    Attributes:
        objects: what `Tracking` knows.
    """

    def __init__(self, options: Options, opener: Callable[[str, Limits], Transport] = open_transport) -> None:
        """Puts together what ``options`` ask for; ``opener`` opens the TPM when it is needed.

        Raises:
            OptionError: they cannot be had.
        """
        raw = is_raw(options.tcti)
        self._limits = Limits(options.time_limit)
        self._observers = Observers(options)
        self._connection = Connection(
            lambda: opener(options.tcti, self._limits), lambda: self.objects.connection_lost(raw=raw)
        )
        folder = runtime_folder()
        keeps_order = raw and not options.pass_through
        ledger = _ledger(folder, options.tcti) if keeps_order and folder is not None else None
        self.objects = Objects(ledger)
        below = self._observers.before(self._connection)
        asked = Retrying(below, self.objects)
        if ledger is not None:
            flush_leftovers(ledger, asked)
        self._tracking = Tracking(asked, self.objects, ledger)
        self._shortcuts: Shortcuts | None = None
        self._outermost: Exchange = below  # a traced program's commands are its own: none more, none repeated
        if not options.pass_through:
            policies = PolicyAuthorization(self._tracking, self.objects, options.policies)
            self._shortcuts = Shortcuts(policies, self.objects, Answers(folder, options.tcti))
            self._outermost = self._shortcuts

    def __call__(self, command: bytes) -> bytes:
        """The response to ``command``; raises `RelayError`."""
        return self._outermost(command)

    @property
    def unsettled(self) -> bool:
        """Whether something was put off that `settle` does."""
        return self._shortcuts is not None and self._shortcuts.unsettled

    def settle(self) -> None:
        """To be called when no command comes; raises `RelayError`."""
        if self._shortcuts is not None:
            self._shortcuts.settle()

    def close(self) -> None:
        """Leaves nothing in the TPM, and gives it back."""
        self._limits.cap = min(self._limits.cap, _LAST_LIMIT)
        self._tracking.close()
        self._connection.close()
        self._observers.close()


def build_layers(options: Options) -> Layers:
    """The layers that ``options`` ask for; the caller closes them."""
    return Layers(options)


def flush_leftovers(ledger: Ledger, exchange: Exchange) -> None:
    """Removes from the TPM what dead relays left there, if any; without a TPM that is for the next relay."""
    if not ledger.others():
        return
    from tpm_mtls_relay.loaded import leftovers  # noqa: PLC0415 - rare

    try:
        leftovers.flush_leftovers(ledger.folder, ledger.tcti, exchange)
    except (RelayError, OSError):
        return


def _ledger(folder: str, tcti: str) -> Ledger:
    from tpm_mtls_relay.loaded.ledger import Ledger  # noqa: PLC0415 - not behind a resource manager

    return Ledger(folder, tcti)
