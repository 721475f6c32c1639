"""A TPM with knobs: a program between libtss2's ``cmd`` transport and a simulated TPM that answers, or kills, on order.

As a module it writes the TCTI string; as a program it is what libtss2 starts: one process for each connection.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

_HEADER = struct.Struct(">HII")  # tag, size, command or response code: TPM 2.0 Library part 1, 18.1
_NO_SESSIONS = 0x8001

HOLD_LIMIT = 10.0  # seconds; only a broken test waits so long
_HELD, _RELEASED = "proxy-held", "proxy-released"


class TpmProxy:
    """The TPM ``tpm``, seen through a program whose behaviour the methods set; commands are their TPM_CC."""

    def __init__(self, tpm: SimulatedTpm, folder: Path) -> None:
        self._rules = folder / "proxy.json"
        self._rules.write_text("{}")
        port = tpm.tcti.rpartition("=")[2]
        # exec, so that the process to be killed is this program's parent, and no shell is in between
        self.tcti = f"cmd:exec {shlex.join([sys.executable, '-S', '-E', __file__, port, str(self._rules)])}"

    def answer(self, command: int, response_code: int, *, times: int = sys.maxsize) -> None:
        """``command`` is answered with ``response_code`` and never reaches the TPM, so many times."""
        self._add(command, {"answer": response_code, "times": times})

    def signal_after(self, command: int, number: signal.Signals, *, skip: int = 0) -> None:
        """The program under test gets a signal when the TPM has done ``command``, before it sees the answer.

        Args:
            command: its TPM_CC.
            number: the signal.
            skip: how many of these commands pass before.
        """
        self._add(command, {"signal": int(number), "skip": skip})

    def spoil(self, command: int, position: int) -> None:
        """One bit of the answers to ``command`` is wrong, in the byte at ``position``, from behind where negative."""
        self._add(command, {"spoil": position})

    def hold(self, command: int, *, skip: int = 0) -> HeldCommands:
        """Keeps the answers to ``command`` back until they are released, or `HOLD_LIMIT` is over.

        Args:
            command: its TPM_CC.
            skip: how many of these commands pass before.
        """
        self._add(command, {"hold": 1, "skip": skip})
        return HeldCommands(self._rules.parent)

    def _add(self, command: int, rule: dict[str, int]) -> None:
        rules = json.loads(self._rules.read_text())
        self._rules.write_text(json.dumps(rules | {str(command): rule}))


class HeldCommands:
    """Whether the TPM proxy keeps an answer back, and until when."""

    def __init__(self, folder: Path) -> None:
        self._held, self._released = folder / _HELD, folder / _RELEASED

    def seen(self) -> bool:
        """Whether one was sent so far."""
        return self._held.exists()

    def released(self) -> bool:
        """Whether they are no longer kept back."""
        return self._released.exists()

    def release(self) -> None:
        """Gives the answers, and keeps no more back."""
        self._released.touch()


def _hold(folder: Path) -> None:
    (folder / _HELD).touch()
    deadline = time.monotonic() + HOLD_LIMIT
    while not (folder / _RELEASED).exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def _main(port: int, rules: dict[str, dict[str, int]], folder: Path) -> None:
    while True:
        header = sys.stdin.buffer.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        _, size, code = _HEADER.unpack(header)
        command = header + sys.stdin.buffer.read(size - _HEADER.size)
        rule = rules.get(str(code), {})
        if rule.get("times", 0) > 0:
            rule["times"] -= 1
            response = _HEADER.pack(_NO_SESSIONS, _HEADER.size, rule["answer"])
        elif "signal" in rule and rule.get("skip", 0) == 0:
            response = _ask(port, command)
            os.kill(os.getppid(), rule["signal"])
            if rule["signal"] == signal.SIGKILL:
                return
            del rules[str(code)]
        elif "spoil" in rule:
            spoilt = bytearray(_ask(port, command))
            spoilt[rule["spoil"]] ^= 1
            response = bytes(spoilt)
        elif "hold" in rule and rule["skip"] == 0:
            response = _ask(port, command)
            _hold(folder)
        else:
            if "skip" in rule:
                rule["skip"] -= 1
            response = _ask(port, command)
        sys.stdout.buffer.write(response)
        sys.stdout.buffer.flush()


def _ask(port: int, command: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as tpm, tpm.makefile("rb") as answers:
        tpm.sendall(command)
        header = answers.read(_HEADER.size)
        _, size, _ = _HEADER.unpack(header)
        return header + answers.read(size - _HEADER.size)


if __name__ == "__main__":
    _main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[2]).parent)
