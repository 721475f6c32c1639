"""The program's life: from its start by libtss2 to its end, at which nothing is left in the TPM."""

from __future__ import annotations

import os

from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.layers import build_layers
from tpm_mtls_relay.observers.observers import check_observers
from tpm_mtls_relay.options import parse_options
from tpm_mtls_relay.parent import Parent
from tpm_mtls_relay.service import Service

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from tpm_mtls_relay.layers import Layers
else:
    import _signal as signal  # the module itself imports enum

_EVERY_DESCRIPTOR = 1 << 20


def main(arguments: list[str]) -> int:
    """Serves the program on stdin and stdout until it closes them, or SIGTERM; returns the exit status."""
    _become_private()
    try:
        options = parse_options(arguments)
        if options.check:
            return check_observers(options)
        layers = build_layers(options)
    except OptionError as error:
        return refuse_everything(error)
    return run(layers, handle_signals=True)


def run(layers: Layers, *, reading: int = 0, writing: int = 1, handle_signals: bool = False) -> int:
    """Serves one program through ``layers``, and closes them; returns the exit status."""
    service = Service(reading, writing, layers, report, layers)
    if handle_signals:
        _handle_signals(service)
    try:
        service.run()
    finally:
        layers.close()
    if handle_signals:
        # Python gives signals their default action back before it ends, and a second SIGTERM would be our exit status
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


def refuse_everything(error: OptionError, *, reading: int = 0, writing: int = 1) -> int:
    """Tells a program why it has no TPM, at every command: if the relay ended, libtss2 would only see garbage."""

    def refuse(_command: bytes) -> bytes:
        raise error

    Service(reading, writing, refuse, report).run()
    return 1


def report(message: str) -> None:
    """Says on stderr, as libtss2 does, why a command failed; TSS2_LOG=all+none silences both."""
    if "none" not in os.environ.get("TSS2_LOG", "").lower():
        os.write(2, f"tpm-mtls relay: {message}\n".encode(errors="replace"))


def _become_private() -> None:
    """Leaves the program what is the program's, and keeps what passes through here from others."""
    import resource  # noqa: PLC0415 - for the program alone

    # libtss2's pipes are not close-on-exec, nor are other libraries' sockets: held here, their ends would never be seen
    os.closerange(3, _EVERY_DESCRIPTOR)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # authorization values pass through


def _handle_signals(service: Service) -> None:
    parent = Parent()

    def terminate(*_: object) -> None:
        if not parent.only_a_thread_ended():
            service.end()

    # from a terminal these go to the whole group: the program decides what they mean, and closes our stdin if it ends
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # it may be inherited, and libtss2 would wait for ever
