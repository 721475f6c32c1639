"""TLS for one accepted connection: between asyncio's TCP transport and an application's protocol.

asyncio has this too, but it drops the alert of a refused handshake (CPython 3.11 to 3.14), so that a client never
learns *why* (``certificate required``, ``certificate expired``). Here the alert is sent, all of the handshake runs in a
worker thread, the TPM's signature included, and every wait has an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

_READ_SIZE = 64 * 1024


@dataclass(frozen=True)
class TlsTimeouts:
    """How long a peer may take, in seconds.

    Attributes:
        handshake: for the whole handshake.
        write: to take what it is sent, once more than the transport's buffer waits.
        close: to close its side after we closed ours.
    """

    handshake: float = 10
    write: float = 10
    close: float = 2


class TlsProtocol(asyncio.Protocol):
    """Does TLS (server side) on a TCP transport and gives the plain text to an application protocol.

    The ``ssl.SSLObject`` is used by one thread at a time: the worker during the handshake, the event loop after it.
    """

    def __init__(
        self,
        tls: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject],
        application: Callable[[], asyncio.Protocol],
        *,
        workers: Executor,
        refused: Callable[[TlsProtocol, ssl.SSLError | TimeoutError], None],
        closed: Callable[[TlsProtocol], None],
        timeouts: TlsTimeouts,
    ) -> None:
        """Prepares a connection.

        Args:
            tls: makes the server-side TLS object for (incoming, outgoing).
            application: makes the protocol that gets the plain text; called after a successful handshake.
            workers: where handshakes run.
            refused: told why a handshake failed (a peer that just goes away is not worth telling).
            closed: told when the TCP connection is gone.
            timeouts: how long the peer may take.
        """
        self._loop = asyncio.get_running_loop()
        self._make_application = application
        self._workers = workers
        self._refused = refused
        self._closed = closed
        self._timeouts = timeouts
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls(self._incoming, self._outgoing)
        self._arrived = asyncio.Event()
        self._application: asyncio.Protocol | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._reading = True
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None

    # from the TCP transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection stands: begins the handshake."""
        self.tcp = cast("asyncio.Transport", transport)
        self._handshake = self._loop.create_task(self._shake_hands())

    def data_received(self, data: bytes) -> None:
        """Cipher text came."""
        if self._closing:
            return  # read only to see the end
        self._incoming.write(data)
        if self._application is None:
            self._arrived.set()
        else:
            self.deliver()

    def eof_received(self) -> None:
        """The peer closed its side of the TCP connection; asyncio closes ours after this."""
        if self._application is None and self._handshake is not None:
            self._handshake.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone."""
        self._closing = True
        self._stop_timer()
        if self._handshake is not None:
            self._handshake.cancel()
        if self._application is not None:
            self._application.connection_lost(exc)
        self._closed(self)

    def pause_writing(self) -> None:
        """The peer does not read: it gets `TlsTimeouts.write` seconds."""
        if not self._closing:
            self._start_timer(self._timeouts.write)
        if self._application is not None:
            self._application.pause_writing()

    def resume_writing(self) -> None:
        """The peer reads again."""
        if not self._closing:
            self._stop_timer()
        if self._application is not None:
            self._application.resume_writing()

    # the handshake

    async def _shake_hands(self) -> None:
        try:
            async with asyncio.timeout(self._timeouts.handshake):
                while not await self._step():
                    await self._more()
        except TimeoutError as error:
            self._refused(self, error)
            self.abort()  # a worker may still hold the BIOs
        except ssl.SSLError as error:
            self._refused(self, error)
            self.close(farewell=False)
        else:
            if self.tcp.is_closing():  # aborted just now: the loss of the connection is to be told next
                return
            self._application = self._make_application()
            self._application.connection_made(TlsTransport(self))
            self.tcp.resume_reading()
            self.deliver()

    async def _step(self) -> bool:
        """One turn of the handshake in a worker thread; false when it needs more from the peer."""
        self.tcp.pause_reading()  # the worker owns the BIOs; what comes meanwhile waits in the kernel
        try:
            await self._loop.run_in_executor(self._workers, self._tls.do_handshake)
        except ssl.SSLWantReadError:
            done = False
        else:
            done = True
        self._send()
        return done

    async def _more(self) -> None:
        """Waits until more came from the peer."""
        self._arrived.clear()
        self.tcp.resume_reading()
        await self._arrived.wait()

    # for the application's transport

    @property
    def tls(self) -> ssl.SSLObject:
        """The connection's TLS object."""
        return self._tls

    @property
    def open(self) -> bool:
        """Whether the handshake is done, so that `close` may be called."""
        return self._application is not None

    @property
    def closing(self) -> bool:
        """Whether it is being closed or is closed."""
        return self._closing

    def deliver(self) -> None:
        """Gives the plain text that is there to the application."""
        try:
            while self._reading and not self._closing:
                data = self._tls.read(_READ_SIZE)
                if not data:  # the peer's close_notify
                    self.close()
                    return
                cast("asyncio.Protocol", self._application).data_received(data)
        except ssl.SSLWantReadError:
            self._send()  # a key update is answered
        except ssl.SSLError:
            self.close(farewell=False)

    def pause_reading(self) -> None:
        """Stops the flow from the peer."""
        self._reading = False
        self.tcp.pause_reading()

    def resume_reading(self) -> None:
        """Lets it flow again."""
        if not self._reading and not self._closing:
            self._reading = True
            self.tcp.resume_reading()
            self._loop.call_soon(self.deliver)  # what was decrypted but not yet delivered

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts and sends ``data``; after `close` it is dropped."""
        rest = memoryview(data)
        while rest and not self._closing:
            rest = rest[self._tls.write(rest) :]
        self._send()

    def close(self, *, farewell: bool = True) -> None:
        """Sends what waits, then closes our side, and after the peer's (or `TlsTimeouts.close`) the connection.

        Closed at once instead, with something of the peer's unread, TCP would reset the connection and the peer could
        lose our last answer, or the alert that says why it was refused.
        """
        if self._closing:
            return
        self._closing = True
        if farewell:
            with contextlib.suppress(ssl.SSLError):  # wants the peer's close_notify too, for which we do not wait
                self._tls.unwrap()
        self._send()
        with contextlib.suppress(OSError):  # the peer has reset the connection, and we have not been told yet
            self.tcp.write_eof()
        self.tcp.resume_reading()
        self._start_timer(self._timeouts.close)

    def abort(self) -> None:
        """Closes the connection at once."""
        self.tcp.abort()

    def _send(self) -> None:
        data = self._outgoing.read()
        if data and not self.tcp.is_closing():
            self.tcp.write(data)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TlsTransport(asyncio.Transport):
    """The transport that the application protocol sees."""

    def __init__(self, protocol: TlsProtocol) -> None:
        super().__init__({"ssl_object": protocol.tls, "sslcontext": protocol.tls.context})
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """``ssl_object``, ``sslcontext``, or what the TCP transport knows (``peername``, ``socket``, …)."""
        own = super().get_extra_info(name)
        return own if own is not None else self._protocol.tcp.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether it is being closed or is closed."""
        return self._protocol.closing

    def close(self) -> None:
        """Sends what waits, then closes the connection."""
        self._protocol.close()

    def abort(self) -> None:
        """Closes the connection at once."""
        self._protocol.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends ``data``."""
        self._protocol.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Sends the parts, in one TLS record as far as they fit."""
        self._protocol.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        """Stops the flow from the peer."""
        self._protocol.pause_reading()

    def resume_reading(self) -> None:
        """Lets it flow again."""
        self._protocol.resume_reading()
