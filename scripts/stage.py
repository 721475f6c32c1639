"""What the demo acts on: a folder, an environment, and programs that run in it and are ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from narrator import Narrator

_PROGRAM_TIMEOUT = 120.0  # seconds; the longest step makes a CA
_SERVICE_END = 20.0  # seconds for a service to finish its requests


class DemoFailedError(Exception):
    """A step did not do what the story says."""


class Stage:
    """Programs in the folder ``folder``; ``tell`` says what they are given and what they answer.

    Attributes:
        environment: of every program.
        ends: what happens when the demo is over, last come first served.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tell = Narrator()
        self.environment = os.environ.copy()
        self.ends = contextlib.ExitStack()

    def run(self, *arguments: str, expect: int = 0, given: str = "") -> str:
        """What ``tpm-mtls`` prints; it is ``given`` something to read, and must end with the status ``expect``."""
        self.tell.command(["tpm-mtls", *arguments], given=given)
        return self._program([sys.executable, "-m", "tpm_mtls", *arguments], expect, given=given)

    def openssl(self, *arguments: str) -> None:
        """Runs openssl, which says more than anybody wants to read."""
        self.tool("openssl", *arguments)

    def tool(self, *command: str) -> None:
        """Runs a program that is not ours; what it says is told only if it fails."""
        self.tell.command(list(command))
        self._program(list(command), 0, silent=True)

    def _program(self, command: list[str], expect: int, *, silent: bool = False, given: str = "") -> str:
        done = subprocess.run(
            command,
            input=given,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            timeout=_PROGRAM_TIMEOUT,
        )
        if not silent or done.returncode != expect:
            self.tell.output("\n".join(filter(None, [done.stdout.rstrip("\n"), done.stderr])))
        self.expect(done.returncode == expect, f"expected exit status {expect}, got {done.returncode}")
        return done.stdout.strip()

    def start_simulator(self, name: str) -> str:
        """The TCTI string of a simulated TPM in the folder ``name``."""
        tcti = self.run("simulator", "start", "--dir", name)
        stop = [sys.executable, "-m", "tpm_mtls", "simulator", "stop", "--dir", str(self.folder / name)]
        self.ends.callback(subprocess.run, stop, check=False, stdout=subprocess.DEVNULL)
        return tcti

    def serve(self, *arguments: str, begins: str = "https://") -> str:
        """Starts a service; returns what it prints once it listens, which ``begins`` like this."""
        self.tell.command(["tpm-mtls", *arguments], background=True)
        log = (self.folder / f"{arguments[0]}.log").open("a")
        self.ends.callback(log.close)
        process = subprocess.Popen(
            [sys.executable, "-m", "tpm_mtls", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.ends.callback(_end, process)
        if process.stdout is None:
            raise DemoFailedError("no pipe to the service")
        url = process.stdout.readline().strip()
        self.expect(url.startswith(begins), f"{arguments[0]} did not start: {Path(log.name).read_text()}")
        self.tell.output(url)
        return url

    def private_file(self, name: str, content: str) -> str:
        """The name of a file that only this user can read."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(content)
        return name

    @staticmethod
    def expect(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - an assertion that stays with python -O
        """Stops the demo unless ``condition`` holds."""
        if not condition:
            raise DemoFailedError(otherwise)


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=_SERVICE_END)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
