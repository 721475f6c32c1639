"""Daemons behind a Unix socket, for the tests of their client: one keeps secrets in memory, others misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self


class ScriptedAgent:
    """Listens at ``path`` and lets ``serve`` have each connection, one after the other, in a thread."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], None], *, backlog: int = 100) -> None:
        self.path = path
        self._serve = serve
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        self._thread = threading.Thread(target=self._run, name="scripted agent")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept up
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._serve(connection)


def read_object(connection: socket.socket) -> bytes:
    """One JSON object, as soon as it is complete: the client says no more, and waits."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
        try:
            json.loads(data)
        except ValueError:
            continue
        return data
    return data


def repeat(connection: socket.socket, piece: bytes, *, pause: float = 0) -> None:
    """Sends ``piece`` again and again until the client has had enough."""
    try:
        while True:
            connection.sendall(piece)
            time.sleep(pause)
    except (BrokenPipeError, ConnectionResetError):
        return


def answering(answer: bytes, asked: list[bytes] | None = None) -> Callable[[socket.socket], None]:
    """Reads one object, which it adds to ``asked``, and answers with ``answer``."""

    def serve(connection: socket.socket) -> None:
        data = read_object(connection)
        if asked is not None:
            asked.append(data)
        connection.sendall(answer)

    return serve


class MemoryAgent(ScriptedAgent):
    """An agent without a TPM; ``secrets`` is what it keeps, ``asked`` what it was asked."""

    def __init__(self, path: Path) -> None:
        self.secrets: dict[str, str] = {}
        self.asked: list[bytes] = []
        super().__init__(path, self._answer)

    def _answer(self, connection: socket.socket) -> None:
        data = read_object(connection)
        self.asked.append(data)
        connection.sendall(json.dumps(self._decide(json.loads(data))).encode())

    def _decide(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["name"]
        if asked["action"] == "set":
            self.secrets[name] = asked["value"]
            return {"ok": True, "index": f"{0x01520000 + sorted(self.secrets).index(name):#010x}"}
        if name not in self.secrets:
            return {"error": "no secret has that name; check it", "rc": "0x18b"}
        if asked["action"] == "get":
            return {"ok": True, "value": self.secrets[name]}
        del self.secrets[name]
        return {"ok": True}
