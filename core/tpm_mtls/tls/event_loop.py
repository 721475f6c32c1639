"""How a TLS object in an event loop waits for the TPM: a thread does the work, and the loop goes on.

What an event loop calls cannot wait itself. It can say `ssl.SSLWantReadError`, upon which asyncio and anyio wait for
data of the peer; here they are made to call again when the work is done (docs/decisions/0005). Only what asyncio loads
imports this.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import contextvars
import functools
import os
import ssl
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

THREADS = 4
"""Signatures and their like at once; a TPM does one at a time."""

Outcome: TypeAlias = "Future[BaseException | None]"
"""Done when the work is, with its error if it had one."""


class Bridge:
    """A TLS object's own BIOs, for the time when a thread uses it, and the event loop may use the caller's ones."""

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._from, self._to = incoming, outgoing
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    def pull(self) -> None:
        """Takes what came from the peer."""
        if self._from.pending:
            self.incoming.write(self._from.read())
        if self._from.eof and not self.incoming.eof:
            self.incoming.write_eof()

    def push(self) -> None:
        """Gives what is for the peer."""
        if self.outgoing.pending:
            self._to.write(self.outgoing.read())


class Caller(abc.ABC):
    """What has called a TLS object, and waits when that says `ssl.SSLWantReadError`.

    Attributes:
        needs_bridge: whether it uses its BIOs while it waits.
    """

    needs_bridge: ClassVar[bool]

    @property
    @abc.abstractmethod
    def peer_port(self) -> int | None:
        """The peer's TCP port, where it is known."""

    @abc.abstractmethod
    def start(self, work: Callable[[], None], *, hold_end: bool) -> Outcome:
        """Begins to do ``work`` in a thread, after which the TLS object is called again.

        Args:
            work: may use the TLS object and nothing else that the event loop uses.
            hold_end: whether the end of the connection must not be seen before the work is done.
        """


def caller(frame: FrameType) -> Caller | None:
    """The caller whose ``frame`` it is; none if it is not known how that waits, or no event loop of asyncio runs."""
    this = frame.f_locals.get("self")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    if isinstance(this, asyncio.BufferedProtocol):
        return _Protocol(this, loop)
    return _Stream(this, loop) if hasattr(this, "transport_stream") else None


class _Protocol(Caller):
    """`asyncio.sslproto.SSLProtocol`, which looks for a change whenever its transport has received something."""

    needs_bridge = True

    def __init__(self, protocol: asyncio.BufferedProtocol, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._loop = loop

    @property
    def peer_port(self) -> int | None:
        transport = self._transport()
        return _port(transport.get_extra_info("peername")) if transport is not None else None

    def start(self, work: Callable[[], None], *, hold_end: bool) -> Outcome:
        held = self._transport() if hold_end else None
        if held is not None:
            held.pause_reading()
        context = contextvars.copy_context()  # for the program's own code, which runs when the handshake is done
        outcome = _threads(os.getpid()).submit(self._unless_lost, work)
        outcome.add_done_callback(lambda _: _in_loop(self._loop, self._again, held, context=context))
        return outcome

    def _unless_lost(self, work: Callable[[], None]) -> BaseException | None:
        return None if self._is_lost() else _outcome(work)

    def _again(self, held: Any) -> None:  # noqa: ANN401 - see _transport
        if held is not None:
            held.resume_reading()
        self._protocol.buffer_updated(0)

    def _transport(self) -> Any:  # noqa: ANN401 - an asyncio.Transport, or whatever another version has here
        return getattr(self._protocol, "_transport", None)

    def _is_lost(self) -> bool:
        return getattr(self._protocol, "_transport", self) is None


class _Stream(Caller):
    """`anyio.streams.tls.TLSStream`, which awaits its transport stream: for a while it gets another one."""

    needs_bridge = False

    def __init__(self, stream: Any, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ANN401 - anyio is not ours to import
        self._stream = stream
        self._loop = loop

    @property
    def peer_port(self) -> int | None:
        remote = sys.modules["anyio.abc"].SocketAttribute.remote_address
        return _port(self._stream.extra(remote, None))  # noqa: S610 - it is no query of Django's

    def start(self, work: Callable[[], None], *, hold_end: bool) -> Outcome:  # noqa: ARG002 - it reads nothing meanwhile
        outcome: Outcome = Future()
        self._stream.transport_stream = _Pause(self._stream, lambda: outcome.set_result(_outcome(work)))
        return outcome


class _Pause:
    """In place of a transport stream: what "arrives" is nothing, as soon as the work is done."""

    def __init__(self, stream: Any, work: Callable[[], None]) -> None:  # noqa: ANN401 - see _Stream
        self._stream = stream
        self._transport = stream.transport_stream
        self._work = work

    async def receive(self, max_bytes: int = 65536) -> bytes:  # noqa: ARG002 - anyio's signature
        self._stream.transport_stream = self._transport
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        working = _threads(os.getpid()).submit(self._work)
        working.add_done_callback(lambda _: _in_loop(loop, done.set))
        await done.wait()
        return b""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - anything that the transport stream has
        return getattr(self._transport, name)


@functools.lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a forked child has no threads of its parent
    return ThreadPoolExecutor(THREADS, thread_name_prefix="tpm-mtls")


def _outcome(work: Callable[[], None]) -> BaseException | None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - the event loop's thread raises it
        return error.with_traceback(None)  # which would keep the connection alive
    return None


def _in_loop(
    loop: asyncio.AbstractEventLoop,
    callback: Callable[..., None],
    *arguments: Any,  # noqa: ANN401 - the callback's
    context: contextvars.Context | None = None,
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(callback, *arguments, context=context)


def _port(address: Any) -> int | None:  # noqa: ANN401 - a tuple for TCP
    return address[1] if isinstance(address, tuple) else None
