"""A simulated TPM for one test, looked at from outside: by tpm2-tools, or by its own answers."""

from __future__ import annotations

import gc
import os
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls_simulator import Simulator

if TYPE_CHECKING:
    from typing import Literal

    Kind = Literal["transient", "persistent", "loaded-session", "saved-session", "nv-index"]

_FIRST = {
    "nv-index": 0x01000000,
    "loaded-session": 0x02000000,
    "saved-session": 0x03000000,
    "transient": 0x80000000,
    "persistent": 0x81000000,
}
"""Where the handles of each kind begin: TPM 2.0 library specification 1.59, part 2, table 27 (TPM_HT)."""

_NO_SESSIONS, _FLUSH_CONTEXT, _GET_CAPABILITY, _CAP_HANDLES = 0x8001, 0x165, 0x17A, 1
"""TPM_ST_NO_SESSIONS, two TPM_CC and TPM_CAP_HANDLES: part 2, sections 6.9, 6.5.2 and 6.12."""

_VOLATILE: tuple[Kind, ...] = ("transient", "loaded-session", "saved-session")

_LISTENING = 2
"""swtpm's own sockets: the data channel's and the control channel's."""


class SimulatedTpm:
    """A running simulated TPM; ``tcti`` is how programs reach it."""

    def __init__(self, folder: Path, *, ek_certificates: bool = False) -> None:
        self.simulator = Simulator(folder)
        self.tcti = self.simulator.start(ek_certificates=ek_certificates).tcti

    def stop(self) -> None:
        """Cuts its power."""
        self.simulator.stop(power_cut=True)

    def restart(self) -> None:
        """Cuts its power and starts it again at the same place: transient objects and sessions are gone."""
        self.stop()
        assert self.simulator.start().tcti == self.tcti

    def tool(self, *command: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a program of tpm2-tools (or any other that reads TPM2TOOLS_TCTI) against this TPM."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
        return subprocess.run(
            command,
            env=environment | {"TPM2TOOLS_TCTI": self.tcti},
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
            cwd=cwd,
        )

    def handles(self, kind: Kind) -> list[str]:
        """The TPM's own list, as tpm2_getcap writes it.

        Asked without a program: every test that has a TPM asks three times, and a program takes longer to begin.
        """
        return [f"0x{handle:X}" for handle in self._capability_handles(_FIRST[kind])]

    def flush(self) -> None:
        """Removes transient objects that a killed program left."""
        for handle in self._capability_handles(_FIRST["transient"]):
            self._command(_FLUSH_CONTEXT, handle)

    def assert_nothing_leaked(self) -> None:
        """No transient object and no session may be left; a TPM that a test switched off has none."""
        status = self.simulator.status()
        if status is None or status.pid is None:
            return
        if self._has_clients(status.pid) or self._left():
            gc.collect()  # a caught exception's traceback keeps TLS contexts alive, and they their keys
        left = self._left()
        assert not left, f"left in the TPM: {left}"

    def _left(self) -> list[str]:
        return [handle for kind in _VOLATILE for handle in self.handles(kind)]

    @property
    def _port(self) -> int:
        return int(self.tcti.rpartition("=")[2])

    def _has_clients(self, process: int) -> bool:
        """Whether some program holds a connection to it: swtpm itself has two sockets, at which it listens."""
        sockets = 0
        for each in Path(f"/proc/{process}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed just now
                sockets += each.readlink().as_posix().startswith("socket:")
        return sockets > _LISTENING

    def _capability_handles(self, first: int) -> tuple[int, ...]:
        body = self._command(_GET_CAPABILITY, _CAP_HANDLES, first, 254)
        more, _, count = struct.unpack_from(">BII", body)
        assert not more
        return struct.unpack_from(f">{count}I", body, 9)

    def _command(self, code: int, *parameters: int) -> bytes:
        """The body of the TPM's answer to a command without sessions, whose parameters have four bytes each."""
        size = 10 + 4 * len(parameters)
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as connection:
            connection.sendall(struct.pack(f">HII{len(parameters)}I", _NO_SESSIONS, size, code, *parameters))
            with connection.makefile("rb") as answers:
                _, size, answered = struct.unpack(">HII", answers.read(10))
                body = answers.read(size - 10)
        assert answered == 0, f"command {code:#x}: {answered:#x}"
        return body
