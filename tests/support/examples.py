"""The examples, run as they stand but for the folders and ports, which are the test's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.mounts import MOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[2] / "examples"
HTTP_CLIENTS = (
    "http_client.py", "urllib3_client.py", "requests_client.py", "httpx_client.py", "aiohttp_client.py", "curl.sh",
)  # fmt: skip
NGINX = ("nginx", "-p", ".", "-e", "error.log", "-c", "{}", "-g", "daemon off; pid nginx.pid;")
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
NGINX_FOLDERS = {"http {": "http { access_log off; " + " ".join(f"{each}_temp_path {each};" for each in _TEMPORARY)}

_PATIENCE = 20.0  # seconds until a server listens, and until it has ended
_WITH_SYSTEM_CAS = (*MOUNTS, "sh", "-c", 'mount --bind "$0" /etc/ssl/certs && exec "$@"')
_PROGRAMS = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


class Examples:
    """The examples on a machine whose files are in other folders.

    Attributes:
        folder: where their copies go, and where they run.
    """

    def __init__(self, folder: Path, tcti: str, service: dict[str, str], instead: dict[str, str]) -> None:
        """``service`` are a service's variables, and ``instead`` says what takes the place of words in the examples."""
        self.folder = folder
        folder.mkdir()
        self._service = service
        self._instead = instead
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OPENSSL_", "COVERAGE_", "TPM", "TSS2_"))
        }
        self._environment = inherited | {"TPM_MTLS_TCTI": tcti, "PATH": _PROGRAMS}

    def copy(self, name: str, instead: dict[str, str]) -> Path:
        """The example with the words of this machine."""
        text = (FOLDER / name).read_text()
        for word, other in (self._instead | instead).items():
            text = text.replace(word, other)
        path = self.folder / name
        path.write_text(text)
        return path

    def run(
        self,
        name: str,
        *arguments: str,
        stdin: str = "",
        instead: dict[str, str] | None = None,
        system_cas: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end.

        Args:
            name: the example.
            arguments: what it gets.
            stdin: what is typed.
            instead: what else takes the place of words.
            system_cas: a folder that takes the place of the system's, in a mount namespace of the program's own.
        """
        outside = [*_WITH_SYSTEM_CAS, str(system_cas)] if system_cas else []
        return subprocess.run(
            [*outside, *self._interpreter(name), str(self.copy(name, instead or {})), *arguments],
            cwd=self.folder,
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @contextmanager
    def running(
        self, name: str, *command: str, port: int, where: str = "", instead: dict[str, str] | None = None
    ) -> Iterator[Path]:
        """A server while the block lasts; the file with what it says.

        Args:
            name: the example.
            command: what runs it, where it is not a program itself; ``{}`` in it stands for the example.
            port: where it listens.
            where: what a program gets as its argument.
            instead: what else takes the place of words.
        """
        path = str(self.copy(name, instead or {}))
        words = [word.replace("{}", path) for word in command] or [*self._interpreter(name), path, where]
        environment = self._environment | (self._service if name.endswith(".conf") else {})
        words[0] = shutil.which(words[0], path=_PROGRAMS) or words[0]
        said = self.folder / f"{name}.log"
        with (
            said.open("w") as log,
            subprocess.Popen(
                words, cwd=self.folder, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            ) as process,
        ):
            try:
                until_listening(process, port, said)
                yield said
            finally:
                process.terminate()
                process.wait(_PATIENCE)

    @staticmethod
    def _interpreter(name: str) -> list[str]:
        return {".py": [sys.executable], ".sh": ["sh"]}[Path(name).suffix]


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def until_listening(process: subprocess.Popen[bytes], port: int, said: Path) -> None:
    """Waits until somebody listens on ``port``; ``said`` is what ``process`` says when it does not come to that."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, said.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(said.read_text())
