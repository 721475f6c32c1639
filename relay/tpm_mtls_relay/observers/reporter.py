"""The trace: one JSON object a line for each command that reaches the TPM, without anything that could be a secret.

    {"time": 1795318316.356, "seconds": 0.0602, "pid": 4711, "program": "curl", "code": 349, "command": "Sign",
     "response_code": 0, "handles": ["0x81000100"], "sessions": ["password"],
     "keys": [{"handle": "0x81000100", "kind": "ecc-p256", "name": "000b…"}], "details": {"scheme": "ecdsa-sha256"},
     "command_bytes": 107, "response_bytes": 96}

``time`` is when the command was sent, in seconds since the epoch; ``pid`` and ``program`` are those of who sent it.
"""

from __future__ import annotations

import json

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.command_names import command_name
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import code_of, handles_of
from tpm_mtls_relay.observers.appending import AppendedFile
from tpm_mtls_relay.observers.facts import facts_of, session_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.observers.facts import Answer

_NAMED = {  # TPM_CC: how many TPM2Bs come before the Name in the response; CreatePrimary has a ticket, too
    commands.LOAD: 0,
    commands.LOAD_EXTERNAL: 0,
    commands.READ_PUBLIC: 1,
    commands.CREATE_LOADED: 2,
    commands.CREATE_PRIMARY: 3,
}
_TICKET = 6  # bytes before its digest: tag and hierarchy
_NAME_LIMIT = 2 + 64


class Reporter:
    """The listener that writes the trace."""

    def __init__(self, path: str, pid: int, program: str) -> None:
        """Opens ``path``, for the commands of the process ``pid``, whose name is ``program``.

        Raises:
            OSError: it cannot be opened, or is a pipe that nobody reads.
        """
        self._file = AppendedFile(path)
        self._pid = pid
        self._program = program
        self._keys: dict[int, tuple[str, str]] = {}

    def __call__(self, command: bytes, response: bytes, started: float, seconds: float) -> None:
        """Writes one line."""
        code = code_of(command)
        answer, kind, details = facts_of(command, response)
        handles = _handles(command)
        made = answer.handle if answer is not None else None
        if answer is not None and answer.parameters:
            self._learn(code, handles, kind, answer)
        used = [*handles, *([] if made is None else [made])]
        if made is not None:
            details["made"] = f"{made:#010x}"
        if kind:
            details["kind"] = kind
        line = {
            "time": round(started, 6),
            "seconds": round(seconds, 6),
            "pid": self._pid,
            "program": self._program,
            "code": code,
            "command": command_name(code),
            "response_code": code_of(response),
            "handles": [f"{handle:#010x}" for handle in handles],
            "sessions": session_words(command)[:3],
            "keys": [
                {"handle": f"{handle:#010x}", "kind": self._keys[handle][0], "name": self._keys[handle][1]}
                for handle in used
                if handle in self._keys
            ],
            "details": details,
            "command_bytes": len(command),
            "response_bytes": len(response),
        }
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        if code == commands.EVICT_CONTROL and "persistent" in details and code_of(response) == 0:
            self._evict(handles, int(str(details["persistent"]), 16))
        elif code == commands.FLUSH_CONTEXT:
            self._keys.pop(int(str(details.get("flushed", "0")), 16), None)

    def close(self) -> None:
        """Ends the trace."""
        self._file.close()

    def _evict(self, handles: tuple[int, ...], persistent: int) -> None:
        """TPM2_EvictControl (part 3, 28.5): an object is at ``persistent`` too from now on; or that one is no more."""
        key = self._keys.get(handles[-1])
        if handles[-1] == persistent:
            self._keys.pop(persistent, None)
        elif key is not None:
            self._keys[persistent] = key

    def _learn(self, code: int, handles: tuple[int, ...], kind: str, answer: Answer) -> None:
        handle = handles[0] if code == commands.READ_PUBLIC and handles else answer.handle
        if handle is None:
            return
        self._keys.pop(handle, None)  # it is something else's now
        if code in _NAMED and (name := _name(code, Reader(answer.parameters))):
            self._keys[handle] = (kind, name.hex())


def _name(code: int, answer: Reader) -> bytes:
    try:
        for _ in range(_NAMED[code]):
            answer.sized()
        if code == commands.CREATE_PRIMARY:
            answer.take(_TICKET)
            answer.sized()
        return answer.sized()[:_NAME_LIMIT]
    except UnreadableError:
        return b""


def _handles(command: bytes) -> tuple[int, ...]:
    try:
        return handles_of(command)
    except UnreadableError:
        return ()


def program_of(pid: int, *, processes: str = "/proc") -> tuple[int, str]:
    """Process number and name of the program behind ``pid``: of the first of its ancestors that is no relay itself."""
    while _is_relay(pid, processes):
        pid = _parent(pid, processes)
    name = _read(f"{processes}/{pid}/comm").decode(errors="replace").strip()
    return pid, "".join(letter if letter.isprintable() else "?" for letter in name)


def _is_relay(pid: int, processes: str) -> bool:
    arguments = _read(f"{processes}/{pid}/cmdline").split(b"\0")
    return any(argument.endswith((b"/tpm_mtls_relay", b"/tpm_mtls_relay/__main__.py")) for argument in arguments[:5])


def _parent(pid: int, processes: str) -> int:
    after_name = _read(f"{processes}/{pid}/stat").rpartition(b")")[2].split()  # state, parent, …: proc(5)
    return int(after_name[1]) if after_name else 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            return file.read(4096)
    except OSError:  # it ended meanwhile
        return b""
