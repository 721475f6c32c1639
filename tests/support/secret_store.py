"""The agent's secrets from outside: the TPM's list, the folder, NV memory that others fill, a process to kill."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tpm_mtls.errors import TpmMemoryError
from tpm_mtls.policy.new_policy import PolicyWish
from tpm_mtls.tpm import open_tpm
from tpm_mtls_agent.storage.opening import open_store

if TYPE_CHECKING:
    from support.tpm import SimulatedTpm

_CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2}
"""The argument that is the folder's descriptor, or -1."""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tpm_mtls_agent.storage.opening", "support.secret_store"])


def nv_indices(tpm: SimulatedTpm) -> list[int]:
    """The NV indices in use."""
    return [int(handle, 16) for handle in tpm.handles("nv-index")]


def secret_files(state_dir: Path) -> list[str]:
    """The names of the files of large values."""
    return sorted(path.name for path in (state_dir / "secrets").iterdir() if path.name.endswith(".sealed"))


def contents(state_dir: Path) -> dict[str, bytes]:
    """All files of the agent's folder."""
    return {path.name: path.read_bytes() for path in (state_dir / "secrets").iterdir()}


def fill_nv(tpm: SimulatedTpm) -> None:
    """Somebody else takes the NV memory, beginning with 2,048 bytes at 0x01800100."""
    index = 0x01800100
    with open_tpm(tpm.tcti) as opened:
        for size in (2048, 512, 128, 64, 32, 16, 8):
            with suppress(TpmMemoryError):
                while True:
                    opened.nv.define(index, size)
                    index += 1


class Operation:
    """A process that opens the store, does one thing and ends in order, or is killed; forked from one that is warm.

    It has what `support.power_cut.TpmTap` kills: ``kill`` and ``wait``.
    """

    def __init__(
        self,
        state_dir: Path,
        tcti: str,
        name: bytes,
        value: bytes | None,
        *,
        pcrs: str | None = None,
        dies_at_file_change: int | None = None,
    ) -> None:
        """``value`` is what is set; with none the secret is deleted. ``dies_at_file_change`` counts from 0."""
        arguments = (state_dir, tcti, name, value, pcrs, dies_at_file_change)
        self._process = _processes.Process(target=_operate, args=arguments)

    def run(self) -> int:
        """Starts it, waits for its end, and returns how it ended: -9 for killed."""
        self._process.start()
        self.wait()
        self._process.join()  # not closed: whoever killed it may still wait for its end, in another thread
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self) -> None:
        """Kills it."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Waits for its end."""
        assert multiprocessing.connection.wait([self._process.sentinel], timeout=30), "it hangs"


def _operate(
    state_dir: Path, tcti: str, name: bytes, value: bytes | None, pcrs: str | None, dies_at: int | None
) -> None:
    if dies_at is not None:
        _die_at_file_change(str(state_dir), dies_at)
    with open_store(state_dir, tcti=tcti, wish=PolicyWish(pcrs=pcrs) if pcrs else None) as store:
        if value is None:
            store.delete(name)
        else:
            store.set(name, value)


def _die_at_file_change(folder: str, left: int) -> None:
    """As `support.power_cut.DIES_AT_FILE_CHANGE`."""

    def changed(event: str, arguments: tuple[object, ...]) -> str:
        descriptor = arguments[_CHANGES[event]]
        start = "" if descriptor == -1 else str(Path(f"/proc/self/fd/{descriptor}").readlink())
        return str(Path(start, str(arguments[0])))

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _CHANGES and (path := changed(event, arguments)).startswith(folder):
            if event == "os.mkdir" and Path(path).is_dir():
                return
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(count)
