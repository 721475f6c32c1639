"""``tpm-mtls agent run`` as a process of its own, over a simulated TPM."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.secrets import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tpm import SimulatedTpm

# systemd's part: the socket becomes descriptor 3, and the variables name the process that gets it
_PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "tpm_mtls", *sys.argv[2:]])
"""


class AgentProcess:
    """A running agent.

    Attributes:
        process: its process.
        socket: where it listens.
        state: its state folder.
        client: a client of it.
    """

    def __init__(self, process: subprocess.Popen[str], socket: Path, state: Path) -> None:
        self.process = process
        self.socket = socket
        self.state = state
        self.client = Client(socket)
        self._said = b""

    def until_said(self, text: str) -> None:
        """Waits until ``text`` was on its stderr."""
        assert self.process.stderr is not None
        stderr = self.process.stderr.fileno()
        while text.encode() not in self._said:
            assert select.select([stderr], [], [], 60)[0], self._said
            piece = os.read(stderr, 65536)
            assert piece, self._said
            self._said += piece

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Ends it by a signal; what it said on stderr."""
        self.process.send_signal(number)
        rest = self.process.communicate(timeout=60)[1]
        return self._said.decode() + rest

    def raw(self, data: bytes) -> dict[str, object]:
        """What it answers to ``data``."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.socket))
            connection.sendall(data)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        decoded = json.loads(answer)
        assert isinstance(decoded, dict)
        return decoded


@contextmanager
def agent_process(
    tpm: SimulatedTpm, folder: Path, *options: object, passed: socket.socket | None = None
) -> Iterator[AgentProcess]:
    """An agent with its files in ``folder``; with the listening socket ``passed`` as from systemd."""
    path, state = folder / "tpmd.sock", folder / "state"
    command = ["agent", "run", "--socket", path, "--state-dir", state, "--tcti", tpm.tcti, "--json", *options]
    begin = [sys.executable, "-c", _PASS, passed.fileno()] if passed else [sys.executable, "-m", "tpm_mtls"]
    with subprocess.Popen(
        [str(each) for each in (*begin, *command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[passed.fileno()] if passed else [],
        env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise AssertionError(process.communicate()[1])
            yield AgentProcess(process, Path(json.loads(line)["socket"]), state)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
