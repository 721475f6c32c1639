"""Runs a program, with the trace of its TPM commands read while it runs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.files import storage_errors
from tpm_mtls.programs import IGNORED_BY_PYTHON
from tpm_mtls.trace.records import LINE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BY_SIGNAL = 128
"""Exit status of POSIX shells for a program that was ended by the signal that is added."""

LINGER = 2.0
"""Seconds for which relays may go on after the program's end: they flush what a killed program left in the TPM.
A program that it left running in the background is not waited for."""

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGWINCH,
)


def run_traced(
    command: Sequence[str],
    environment: Callable[[Path], Mapping[str, str]],
    told: Callable[[bytes], None],
) -> int:
    """Runs ``command`` and passes each line of the trace to ``told``, from another thread, while it runs.

    Signals that this process gets are passed on, unless the terminal sent them, which sends them to the program too.

    Args:
        command: the program and its arguments.
        environment: the program's environment variables, for a trace that relays write to the path given.
        told: gets each line; must not raise.

    Returns:
        The program's exit status, or 128 and the signal that ended it.

    Raises:
        OSError: there is no such program, or it cannot be run.
        StorageError: there is no place for temporary files.
    """
    with contextlib.ExitStack() as at_end:
        with storage_errors(Path(tempfile.gettempdir()), "write"):
            folder = at_end.enter_context(tempfile.TemporaryDirectory(prefix="tpm-mtls-trace-"))  # mode 0700
            pipe = Path(folder, "trace")
            os.mkfifo(pipe, 0o600)
            reader = _Reader(pipe, told)
        end_of_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored there is no exit status
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_FORWARDED})
        try:
            reader.start()
            # no subprocess: only posix_spawn gives the program the signal mask that was there before
            program = os.posix_spawnp(
                command[0], list(command), environment(pipe), setsigmask=before, setsigdef=IGNORED_BY_PYTHON
            )
            return _wait(program)
        finally:
            reader.finish()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            signal.signal(signal.SIGCHLD, end_of_child or signal.SIG_DFL)


def _wait(pid: int) -> int:
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(pid, ended, threading.get_ident()), name="end of the program")
    watching.start()
    _forward(pid, ended)
    watching.join()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else BY_SIGNAL - code


def _watch(pid: int, ended: threading.Event, waiting: int) -> None:
    """Wakes the thread ``waiting`` up at the end; the kernel's own SIGCHLD may go to any thread, or be ignored."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ended.set()
    signal.pthread_kill(waiting, signal.SIGCHLD)


def _forward(pid: int, ended: threading.Event) -> None:
    while not ended.is_set():
        got = signal.sigwaitinfo({signal.SIGCHLD, *_FORWARDED})
        # the terminal's come from the kernel, whose si_code is greater (sigaction(2), SI_KERNEL)
        if got.si_signo != signal.SIGCHLD and got.si_code <= 0:
            os.kill(pid, got.si_signo)  # not reaped yet, so the number is still its own


class _Reader:
    """Reads the pipe in a thread of its own, until all relays have closed it."""

    def __init__(self, pipe: Path, told: Callable[[bytes], None]) -> None:
        self._told = told
        self._reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writing = os.open(pipe, os.O_WRONLY | os.O_CLOEXEC)  # or it would be at its end before the first relay
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._read, name="trace")

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def finish(self) -> None:
        """Reads until the last relay has closed the pipe, but at most `LINGER`."""
        os.close(self._writing)
        self._thread.join(LINGER)
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._reading)
        os.close(self._stop)

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        rest = b""
        while True:
            poll.poll()
            try:
                piece = os.read(self._reading, 16 * LINE_LIMIT)
            except BlockingIOError:  # nothing is left, and `finish` waits no longer
                return
            if not piece:  # the last relay has closed it
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._told(line)
