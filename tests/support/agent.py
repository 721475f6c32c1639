"""A running agent for tests: its daemon in this event loop, and a store that keeps its secrets in memory.

The store stands for what keeps secrets in the TPM, where a test is about the daemon alone; it stands for no TPM.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import NoSuchSecretError, TpmMtlsError
from tpm_mtls_agent.daemon import prepared
from tpm_mtls_agent.settings import Limits, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tpm_mtls_agent.daemon import Daemon
    from tpm_mtls_agent.storage.store import SecretStore

FIRST_INDEX = 0x01520000


class MemoryStore:
    """Secrets in a dictionary.

    Attributes:
        order: the names, in the order in which operations came.
        opened: how often it was opened.
        fault: raised by the next operations.
        gate: operations wait until it is set.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, tuple[int, bytes]] = {}
        self.order: list[bytes] = []
        self.threads: set[int] = set()
        self.opened = 0
        self.closed = 0
        self.fault: Exception | None = None
        self.open_fault: TpmMtlsError | None = None
        self.gate = threading.Event()
        self.gate.set()

    @contextlib.contextmanager
    def open(self) -> Iterator[SecretStore]:
        """As `tpm_mtls_agent.storage.store.OpenStore`."""
        self.threads.add(threading.get_ident())
        if self.open_fault is not None:
            raise self.open_fault
        self.opened += 1
        try:
            yield self
        finally:
            self.closed += 1

    def set(self, name: bytes, value: bytes) -> int:
        self._begin(name)
        taken = {index for index, _ in self.values.values()}
        free = next(index for index in range(FIRST_INDEX, FIRST_INDEX + 0x100000) if index not in taken)
        index = self.values[name][0] if name in self.values else free
        self.values[name] = (index, value)
        return index

    def get(self, name: bytes) -> bytes:
        self._begin(name)
        return self._find(name)[1]

    def delete(self, name: bytes) -> None:
        self._begin(name)
        self._find(name)
        del self.values[name]

    def label(self, name: bytes) -> str:
        return hmac.new(b"the test's key", name, hashlib.sha256).hexdigest()[:32]

    def _begin(self, name: bytes) -> None:
        self.threads.add(threading.get_ident())
        self.order.append(name)
        assert self.gate.wait(30)
        if self.fault is not None:
            raise self.fault

    def _find(self, name: bytes) -> tuple[int, bytes]:
        if name not in self.values:
            raise NoSuchSecretError("no secret has that name", hint="set it first")
        return self.values[name]


class RunningAgent:
    """An agent in this event loop.

    Attributes:
        store: what it keeps secrets in.
        folder: where its files are.
        socket: where it listens.
    """

    def __init__(self, folder: Path, store: MemoryStore) -> None:
        self.folder = folder
        self.store = store
        self.socket = folder / "tpmd.sock"
        self.daemon: Daemon

    async def send(self, data: bytes, *, half_close: bool = False, pieces: int | None = None) -> bytes:
        """What the agent answers to ``data`` until it closes the connection."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            for start in range(0, len(data), pieces or max(len(data), 1)):
                writer.write(data[start : start + (pieces or len(data))])
                await writer.drain()
            if half_close:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, action: Any, name: Any, **others: Any) -> dict[str, Any]:  # noqa: ANN401 - wrong types, too
        """The answer to a request."""
        request = {"action": action, "name": name, **others}
        answer = json.loads(await self.send(json.dumps(request).encode()))
        assert isinstance(answer, dict)
        return answer

    def log(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return len(self.daemon._service._queue)

    def connections(self) -> int:
        """How many connections are open."""
        return len(self.daemon._connections._serving)

    def break_log(self) -> None:
        """From now on the disk of the audit log is full."""
        full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(full, self.daemon._audit._descriptor)
        os.close(full)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until ``holds``."""
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - what it looks at has no event
                await asyncio.sleep(0.005)

    async def reload(self) -> None:
        """Sends SIGHUP, and waits until it has had its effect."""
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(10):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running_agent(
    folder: Path,
    *,
    store: MemoryStore | None = None,
    limits: Limits | None = None,
    allow_list: Path | None = None,
    group: str | None = None,
) -> AsyncIterator[RunningAgent]:
    """An agent that listens in ``folder``, until the block ends."""
    agent = RunningAgent(folder, store or MemoryStore())
    settings = Settings(
        socket=agent.socket,
        audit=folder / "audit.jsonl",
        lock=folder / "agent.lock",
        group=group,
        allow_list=allow_list,
        limits=limits or Limits(),
    )
    with prepared(settings, agent.store.open) as agent.daemon:
        listens = asyncio.Event()
        running = asyncio.create_task(agent.daemon.run(lambda _: listens.set()))
        waiting = asyncio.create_task(listens.wait())
        try:
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not running.done():
                yield agent
        finally:
            agent.daemon.stop()
            agent.store.gate.set()
            await running
