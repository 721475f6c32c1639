"""One simulated TPM in one folder: start, stop, status."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tpm_mtls.errors import SimulatorError
from tpm_mtls.files import make_folder, read_capped, storage_errors, write_atomic
from tpm_mtls_simulator.manufacture import manufacture
from tpm_mtls_simulator.programs import clean_environment, require_program

# Below the kernel's ephemeral ports (32768 upwards): no outgoing connection can sit on one.
_PORTS = range(20000, 32000, 2)
_PORT_ATTEMPTS = 50
_START_TIMEOUT = 20.0  # seconds; swtpm answers in 0.05, a loaded machine takes longer
_STOP_TIMEOUT = 10.0  # seconds
_SHUTDOWN_TIMEOUT = 2.0  # seconds; a TPM with nothing to do answers at once

# TPM2_Shutdown(TPM_SU_CLEAR): TPM 2.0 Library part 3 rev 1.59, 9.4
_SHUTDOWN = bytes.fromhex("8001 0000000c 00000145 0000")
_ANSWER_SIZE = 10  # bytes


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    port: int


@dataclass(frozen=True)
class SimulatorStatus:
    """What `Simulator.status` found.

    Attributes:
        running: whether the process is there.
        tcti: the TCTI string with which programs reach it (also when it is stopped: the port stays the same).
        pid: its process id, none when it is stopped.
    """

    running: bool
    tcti: str
    pid: int | None


class Simulator:
    """A simulated TPM whose state, certificates, log and process id lie in ``folder``.

    swtpm's data channel is at a TCP port of the loopback address, its control channel at the next one, as libtss2's
    ``swtpm`` transport expects.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # swtpm in the background has another working directory

    @property
    def state(self) -> Path:
        """The TPM's non-volatile memory: seeds, persistent objects, NV indices."""
        return self.folder / "state"

    @property
    def log(self) -> Path:
        """What swtpm says."""
        return self.folder / "swtpm.log"

    def start(
        self, *, ca: Path | None = None, ek_certificates: bool = True, port: int | None = None
    ) -> SimulatorStatus:
        """Starts it, after manufacturing it the first time; a running one is left as it is.

        Args:
            ca: folder of the simulated TPM maker's CA, made if absent; several TPMs can share one. Its own by default.
            ek_certificates: whether manufacturing makes endorsement keys and their certificates (about a second).
            port: TCP port of the data channel; the one of the last time, or a free one, by default.

        Raises:
            SimulatorError: swtpm is not installed, fails, or finds its port taken.
            StorageError: the folder cannot be written.
        """
        status = self.status()
        if status is not None and status.running:
            return status
        require_program("swtpm", "swtpm")
        make_folder(self.folder)
        if not self.state.exists():
            manufacture(self.state, ca=ca or self.folder / "ca", ek_certificates=ek_certificates)
        wanted = port or (self._settings().port if status else None)
        candidates = [wanted] if wanted else random.sample(_PORTS, _PORT_ATTEMPTS)
        free = [each for each in candidates if _is_free(each) and _is_free(each + 1)]
        for candidate in free:
            if self._launch(candidate):
                write_atomic(self._settings_file, msgspec.json.encode(_Settings(candidate)) + b"\n")
                return self._running_status()
        more = f"; swtpm says more in {self.log}" if free and self.log.exists() else ""
        raise SimulatorError(
            f"swtpm could not listen on {f'port {wanted}' if wanted else 'any port that was tried'}",
            hint=f"another program may have it; name another with --port{more}",
        )

    def stop(self, *, power_cut: bool = False) -> bool:
        """Ends it: nothing volatile stays; false when it was not running.

        Args:
            power_cut: without the TPM2_Shutdown that an operating system sends before it switches off. A TPM counts
                that as a wrong authorization value, if one that counts was used: TPM 2.0 Library part 1 rev 1.59,
                19.8.6.

        Raises:
            SimulatorError: it does not end.
        """
        pid = self._pid()
        if pid is None:
            return False
        if not power_cut:
            self._shut_down()
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                if not select.select([descriptor], [], [], _STOP_TIMEOUT)[0]:
                    raise SimulatorError(
                        f"swtpm (process {pid}) does not end", hint=f"see {self.log}, then: kill -9 {pid}"
                    )
            finally:
                os.close(descriptor)
        self._pid_file.unlink(missing_ok=True)
        return True

    def status(self) -> SimulatorStatus | None:
        """Whether it runs and where; none when no simulator was ever started in this folder.

        Raises:
            SimulatorError: the folder's settings are damaged.
        """
        if not self._settings_file.exists():
            return None
        pid = self._pid()
        return SimulatorStatus(running=pid is not None, tcti=_tcti(self._settings().port), pid=pid)

    def _shut_down(self) -> None:
        """Sends TPM2_Shutdown; a TPM whose only channel another program holds is not told."""
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._settings().port), timeout=_SHUTDOWN_TIMEOUT) as channel,
        ):
            channel.sendall(_SHUTDOWN)
            channel.recv(_ANSWER_SIZE)

    @property
    def _pid_file(self) -> Path:
        return self.folder / "swtpm.pid"

    @property
    def _settings_file(self) -> Path:
        return self.folder / "simulator.json"

    def _running_status(self) -> SimulatorStatus:
        status = self.status()
        if status is None or not status.running:
            raise SimulatorError("swtpm ended right after its start", hint=f"swtpm says why in {self.log}")
        return status

    def _settings(self) -> _Settings:
        try:
            return msgspec.json.decode(read_capped(self._settings_file, limit=1024), type=_Settings)
        except msgspec.DecodeError as error:
            raise SimulatorError(
                f"{self._settings_file} is damaged", hint="remove that folder and start anew"
            ) from error

    def _launch(self, port: int) -> bool:
        """Whether swtpm came up on ``port``; it forks itself into the background once it listens."""
        self._pid_file.unlink(missing_ok=True)
        command = [
            *("swtpm", "socket", "--tpm2", "--daemon"),
            *("--tpmstate", f"dir={self.state}"),
            *("--server", f"type=tcp,port={port}"),
            *("--ctrl", f"type=tcp,port={port + 1}"),
            *("--flags", "not-need-init,startup-clear"),
            *("--pid", f"file={self._pid_file}"),
            *("--log", f"file={self.log},level=1"),
        ]
        with storage_errors(self.folder, "write"):
            outcome = subprocess.run(
                command,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_START_TIMEOUT,
                check=False,
            )
        return outcome.returncode == 0

    def _pid(self) -> int | None:
        """The process id of our swtpm; a reused number of another process does not count."""
        try:
            pid = int(self._pid_file.read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if f"dir={self.state}".encode() in arguments else None


def _tcti(port: int) -> str:
    return f"swtpm:host=127.0.0.1,port={port}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
