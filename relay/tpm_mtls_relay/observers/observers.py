"""What the options ask for between the retries and the TPM: trace, capture, counters, and the latency model.

Each is imported only when its option is given. What cannot be written is said on stderr once, and stops nothing.
"""

from __future__ import annotations

import os
import sys

from tpm_mtls_relay.errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.observers.latency import Model
    from tpm_mtls_relay.observers.tap import Listener
    from tpm_mtls_relay.options import Options

_WRONG_OPTION = 2


class Observers:
    """``Tap(LatencyModel(transport))``, as far as ``options`` ask for them.

    Made before the TPM is opened, so that what the options name is checked first.

    Attributes:
        complaints: which of the files cannot be written, and why.
    """

    def __init__(self, options: Options) -> None:
        """Opens what ``options`` name.

        Raises:
            OptionError: the latency model is none.
        """
        self.complaints: list[str] = []
        self._listeners: list[Listener] = []
        self._closing: list[Callable[[], None]] = []
        self._model: Model | None = None
        self._turns: int | None = None
        if options.latency_model:
            from tpm_mtls_relay.observers.latency_file import load_model  # noqa: PLC0415 - only if asked for

            self._model = load_model(options.latency_model)
            self._turns = _turns(options.tcti)
        for path, make in ((options.trace, _trace), (options.pcap, _capture), (options.metrics, _counters)):
            if path:
                self._open(path, make)

    def before(self, transport: Exchange) -> Exchange:
        """The layers that stand before ``transport``; it itself without any of the options."""
        layer = transport
        if self._model is not None:
            from tpm_mtls_relay.observers.latency import LatencyModel  # noqa: PLC0415 - only if asked for

            layer = LatencyModel(layer, self._model, turns=self._turns)
        if self._listeners:
            from tpm_mtls_relay.observers.tap import Tap  # noqa: PLC0415 - only if asked for

            layer = Tap(layer, self._listeners)
        return layer

    def close(self) -> None:
        """Writes what is still to be written, at the relay's end."""
        for close in self._closing:
            close()
        if self._turns is not None:
            os.close(self._turns)
            self._turns = None

    def _open(self, path: str, make: Callable[[str], tuple[Listener, Callable[[], None]]]) -> None:
        try:
            listener, close = make(path)
        except OSError as error:
            self._complain(f"cannot write {path}: {(error.strerror or str(error)).lower()}")
        except OptionError as error:
            self._complain(str(error))
        else:
            self._listeners.append(listener)
            self._closing.append(close)

    def _complain(self, message: str) -> None:
        self.complaints.append(message)
        say(message)


def check_observers(options: Options) -> int:
    """Opens the files that ``options`` name and closes them again; what is wrong is said on stderr.

    Returns:
        The exit status: 0 where all is well, else 2.
    """
    try:
        observers = Observers(options)
    except OptionError as error:
        say(str(error))
        return _WRONG_OPTION
    observers.close()
    return _WRONG_OPTION if observers.complaints else 0


def say(message: str) -> None:
    """One line on stderr, which is that of the program that started the relay."""
    sys.stderr.write(f"tpm-mtls relay: {message}\n")


def _turns(tcti: str) -> int | None:
    from tpm_mtls_relay.observers.latency import open_turns  # noqa: PLC0415 - only if asked for
    from tpm_mtls_relay.runtime_folder import runtime_folder  # noqa: PLC0415 - the same

    try:
        return open_turns(tcti, runtime_folder())
    except OSError:  # without the lock, programs do not wait for each other
        return None


def _trace(path: str) -> tuple[Listener, Callable[[], None]]:
    from tpm_mtls_relay.observers.reporter import Reporter, program_of  # noqa: PLC0415 - only if asked for

    reporter = Reporter(path, *program_of(os.getppid()))
    return reporter, reporter.close


def _capture(path: str) -> tuple[Listener, Callable[[], None]]:
    from tpm_mtls_relay.observers.capture import Capture  # noqa: PLC0415 - only if asked for

    capture = Capture(path, os.getppid())
    return capture, capture.close


def _counters(path: str) -> tuple[Listener, Callable[[], None]]:
    from tpm_mtls_relay.observers.counters import Counters  # noqa: PLC0415 - only if asked for

    counters = Counters(path)
    return counters, counters.close
