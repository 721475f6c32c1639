"""Serves one program: reads its commands, writes the responses."""

from __future__ import annotations

import os
import select

from tpm_mtls_relay.errors import MalformedCommandError, RelayError
from tpm_mtls_relay.messages.wire import HEADER, MESSAGE_LIMIT, refusal, size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.layers import Layers
    from tpm_mtls_relay.messages.wire import Exchange

QUIET = 0.05
"""Seconds without a command, after which what was put off in the hope of one is done."""

_SKIP_LIMIT = 65536
"""Bytes; a larger command is no mistake of a program that speaks to a TPM."""


class Service:
    """Answers the commands from the descriptor ``reading`` on the descriptor ``writing``.

    Args:
        reading: the program's commands.
        writing: the program's responses.
        answer: the layers.
        report: is told why a command was not answered by the TPM.
        layers: the same layers as ``answer``, if they may put something off (`Shortcuts.unsettled`).
    """

    def __init__(
        self,
        reading: int,
        writing: int,
        answer: Exchange,
        report: Callable[[str], None],
        layers: Layers | None = None,
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._answer = answer
        self._report = report
        self._layers = layers
        self._waiting = False
        self._ending = False

    def run(self) -> None:
        """Returns when the program closes its end, when what it writes are no commands, or after `end`."""
        try:
            while not self._ending:
                if self._layers is not None and self._layers.unsettled and self._is_quiet():
                    self._settle(self._layers)
                elif not self._serve():
                    return
        except (_EndedError, BrokenPipeError):
            return

    def end(self) -> None:
        """To be called by a signal's handler: a command that the TPM has begun is finished first."""
        self._ending = True
        if self._waiting:
            self._waiting = False  # only once: libtss2 and the kernel may both send a signal
            raise _EndedError

    def _is_quiet(self) -> bool:
        """Whether the program sends nothing for a while."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        self._waiting = True
        events = poll.poll(QUIET * 1000)
        self._waiting = False
        return not events

    def _settle(self, layers: Layers) -> None:
        try:
            layers.settle()
        except RelayError as error:
            self._report(str(error))

    def _serve(self) -> bool:
        """Serves one command; whether there may be another one."""
        try:
            command = self._next()
            response = self._answer(command) if command else b""
        except RelayError as error:
            self._waiting = False
            self._report(str(error))
            _write(self._writing, refusal(error))
            return not isinstance(error, _OutOfStepError)
        _write(self._writing, response)
        return bool(command)

    def _next(self) -> bytes:
        """The next whole command; empty at the end."""
        self._waiting = True
        header = _read(self._reading, HEADER.size)
        command = self._rest(header) if header else b""
        self._waiting = False
        return command

    def _rest(self, header: bytes) -> bytes:
        """The whole command; empty when the program ended within it."""
        try:
            size = size_of(header)
        except MalformedCommandError as error:
            raise _OutOfStepError(str(error)) from error
        if size <= MESSAGE_LIMIT:
            rest = _read(self._reading, size - HEADER.size)
            return header + rest if len(rest) == size - HEADER.size else b""
        if size > _SKIP_LIMIT:
            raise _OutOfStepError(f"a command of {size} bytes")
        _read(self._reading, size - HEADER.size)
        raise MalformedCommandError(f"a command of {size} bytes; a TPM takes {MESSAGE_LIMIT} at most")


class _EndedError(Exception):
    """A signal came while nothing was to be done."""


class _OutOfStepError(MalformedCommandError):
    """Where the next command begins is not known."""


def _read(descriptor: int, size: int) -> bytes:
    """As many bytes; empty when the stream ends before."""
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
