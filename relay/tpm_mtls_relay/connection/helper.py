"""A program between the relay and the TPM, started as libtss2's ``cmd`` transport starts one (tcti-cmd.c)."""

from __future__ import annotations

import os
import select

from tpm_mtls_relay.connection.transport import exchange
from tpm_mtls_relay.errors import ConnectionLostError, TransportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from tpm_mtls_relay.connection.transport import Limits
else:
    import _signal as signal  # the module itself imports enum

_GRACE = 5000
"""Milliseconds that a helper may take to end, once it was asked to."""


class HelperTransport:
    """Commands go to the stdin of ``program``, one after the other; responses come from its stdout."""

    def __init__(self, program: list[str], limits: Limits) -> None:
        """Starts ``program``.

        Raises:
            TransportError: it does not start.
        """
        self._limits = limits
        its_stdin, self._writing = os.pipe()
        self._reading, its_stdout = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, its_stdin, 0), (os.POSIX_SPAWN_DUP2, its_stdout, 1)]
        try:
            self._pid = os.posix_spawnp(
                program[0], program, os.environ, file_actions=actions, setsigmask=[], setsigdef=[signal.SIGPIPE]
            )
        except OSError as error:
            os.close(self._writing)
            os.close(self._reading)
            raise TransportError(f"cannot start {program[0]}: {error.strerror}") from error
        finally:
            os.close(its_stdin)
            os.close(its_stdout)
        os.set_blocking(self._writing, False)
        os.set_blocking(self._reading, False)

    def __call__(self, command: bytes) -> bytes:
        """Sends ``command`` and waits for the response."""
        if _has_ended(self._reading):
            raise ConnectionLostError("the program that knows the way to the TPM has ended", sent=False)
        return exchange(command, self._writing, self._reading, self._limits.deadline(command))

    def close(self) -> None:
        """Ends the helper: its stdin ends and it gets SIGTERM, as from libtss2; SIGKILL when that does not help."""
        os.close(self._writing)
        os.close(self._reading)
        descriptor = os.pidfd_open(self._pid)
        try:
            os.kill(self._pid, signal.SIGTERM)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(_GRACE):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        finally:
            os.close(descriptor)


def _has_ended(descriptor: int) -> bool:
    """Whether the other side closed it: nothing that is sent now can reach the TPM."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))
