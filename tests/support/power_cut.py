"""Kills a running command at an exact moment: at its n-th TPM command, or at its n-th change of a file.

with TpmTap(tpm.tcti) as tap:                       # sits between a program and the simulated TPM
    process = subprocess.Popen([…, "--tcti", tap.tcti])
    tap.kill(process, at=3, answered=True)          # the TPM has done it, the program never hears
"""

from __future__ import annotations

import random
import re
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import subprocess

_COMMANDS = {
    0x120: "EvictControl",
    0x122: "NV_UndefineSpace",
    0x12A: "NV_DefineSpace",
    0x131: "CreatePrimary",
    0x137: "NV_Write",
    0x147: "ActivateCredential",
    0x148: "Certify",
    0x14E: "NV_Read",
    0x151: "PolicySecret",
    0x153: "Create",
    0x157: "Load",
    0x15D: "Sign",
    0x15E: "Unseal",
    0x165: "FlushContext",
    0x169: "NV_ReadPublic",
    0x173: "ReadPublic",
    0x176: "StartAuthSession",
    0x178: "ECC_Parameters",
    0x17A: "GetCapability",
    0x17D: "Hash",
    0x181: "ReadClock",
    0x191: "CreateLoaded",
}
"""TPM_CC: TPM 2.0 Library part 2, 6.5.2."""

DIES_AT_FILE_CHANGE = """
import os, signal, sys

folder, left = sys.argv.pop(1), int(sys.argv.pop(1))
CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2}  # which argument is the folder's descriptor, or -1


def changed(event, arguments):
    descriptor = arguments[CHANGES[event]]
    start = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else ""
    return os.path.join(start, os.fspath(arguments[0]))


def count(event, arguments):
    global left
    if event in CHANGES and changed(event, arguments).startswith(folder):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1


sys.addaudithook(count)
from tpm_mtls.cli import run

sys.exit(run())
"""
"""A program: ``python -c DIES_AT_FILE_CHANGE FOLDER N ARGUMENT…`` is ``tpm-mtls ARGUMENT…``, until and without the
N-th (from 0) new folder, renamed or removed file in FOLDER."""


class TpmTap:
    """Forwards swtpm's two connections, one TPM command after the other, and counts.

    Attributes:
        tcti: how programs reach the TPM through it.
        commands: the commands so far, by name.
    """

    def __init__(self, tcti: str) -> None:
        found = re.search(r"port=(\d+)", tcti)
        assert found is not None
        self._target = int(found[1])
        self._listeners = _two_listeners()
        self.tcti = f"swtpm:host=127.0.0.1,port={self._listeners[0].getsockname()[1]}"
        self.commands: list[str] = []
        self._victim: subprocess.Popen[bytes] | None = None
        self._at = 0
        self._answered = False
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._serve, args=(listener, self._target + offset, offset == 0))
            for offset, listener in enumerate(self._listeners)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        for listener in self._listeners:
            with socket.create_connection(listener.getsockname()):  # wakes its thread
                pass
        for thread in self._threads:
            thread.join()
        for listener in self._listeners:
            listener.close()

    def kill(self, process: subprocess.Popen[bytes], *, at: int, answered: bool) -> None:
        """Kills ``process`` at its command number ``at`` (from 1): before the TPM gets it, or after it ``answered``.

        Must be called before the process gets there: it waits for this call at its first command.
        """
        self._at, self._answered, self._victim = at, answered, process

    def _serve(self, listener: socket.socket, port: int, is_data: bool) -> None:  # noqa: FBT001 - private
        while True:
            connection, _ = listener.accept()
            with connection:
                if self._stopping:
                    return
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as tpm:
                    connection.settimeout(10)
                    tpm.settimeout(10)
                    self._relay(connection, tpm, is_data)

    def _relay(self, program: socket.socket, tpm: socket.socket, is_data: bool) -> None:  # noqa: FBT001 - private
        while command := _read_frame(program) if is_data else program.recv(4096):
            if is_data:
                code = int.from_bytes(command[6:10], "big")
                self.commands.append(_COMMANDS.get(code, f"{code:#x}"))
                if self._dies(answered=False):
                    return
            tpm.sendall(command)
            answer = _read_frame(tpm) if is_data else tpm.recv(4096)
            if is_data and self._dies(answered=True):
                return
            program.sendall(answer)

    def _dies(self, *, answered: bool) -> bool:
        if self._victim is None or len(self.commands) != self._at or answered != self._answered:
            return False
        self._victim.kill()
        self._victim.wait()
        return True


def _two_listeners() -> list[socket.socket]:
    """At a free port and the next one: libtss2 expects swtpm's control channel there."""
    while True:
        port = random.randrange(20000, 32000, 2)  # noqa: S311 - a port, no secret
        listeners: list[socket.socket] = []
        try:
            for offset in (0, 1):
                listeners.append(socket.create_server(("127.0.0.1", port + offset)))  # noqa: PERF401 - closed on failure
        except OSError:
            for listener in listeners:
                listener.close()
        else:
            return listeners


def _read_frame(stream: socket.socket) -> bytes:
    """One TPM command or answer: tag (2 bytes), size (4 bytes, of all), the rest; empty at the end."""
    data = b""
    while len(data) < 6 or len(data) < int.from_bytes(data[2:6], "big"):
        chunk = stream.recv(4096)
        if not chunk:
            return b""
        data += chunk
    return data
