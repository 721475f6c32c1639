"""The TLS objects of an `IdentityContext`, for programs that do their own input and output, such as asyncio."""

from __future__ import annotations

import contextlib
import ssl
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from tpm_mtls.openssl import signatures
from tpm_mtls.tls.handshakes import counted, following, own_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from tpm_mtls.tls.event_loop import Bridge, Caller, Outcome
    from tpm_mtls.tls.sessions import Resumption

_SERVERS_ANSWER = 2
"""The step of a client's handshake after the one that begins it."""

_ASYNCIO, _ANYIO = "asyncio.sslproto", "anyio.streams.tls"


class IdentityObject(ssl.SSLObject):
    """A TLS object that resumes an earlier session where it can, and knows why a handshake failed.

    In an event loop of asyncio, a thread does what waits for the TPM. Meanwhile nothing else happens to the object: its
    methods raise `ssl.SSLWantReadError`, as if it waited for the peer.

    Attributes:
        resumption: its part in its context's sessions; none on the server's side.
        bridge: between its BIOs and its caller's, if those are used while a thread uses the object.
    """

    resumption: Resumption | None = None
    bridge: Bridge | None = None
    _outcome: Outcome | None = None
    _steps = 0  # of the handshake, in an event loop
    _sslobj: object

    @property
    def context(self) -> ssl.SSLContext:
        """The context in use; a server-name callback may choose another one."""
        return super().context

    @context.setter
    def context(self, chosen: ssl.SSLContext) -> None:
        with following(chosen):
            ssl.SSLObject.context.__set__(self, chosen)  # type: ignore[attr-defined]  # a property

    def do_handshake(self) -> None:
        """As `ssl.SSLObject.do_handshake`, with a `TpmMtlsError` as the cause of its error if the own key failed."""
        caller = _caller(sys._getframe(1))  # noqa: SLF001 - there is no public way to know who calls
        with self._exchange():
            if self.resumption is not None:
                port = caller.peer_port if caller is not None else None
                self.resumption.before_handshake(self._sslobj, (self.server_hostname, port))
            if caller is None or not self._is_slow_for(caller):
                self._step()
            else:
                self._step_in_loop(caller)
            if self.resumption is not None:
                self.resumption.after_handshake(self._sslobj)

    def read(self, *arguments: Any) -> Any:  # noqa: ANN401 - the parent's signature
        """As `ssl.SSLObject.read`; the refusal of a handshake in TLS 1.3 arrives here."""
        with self._exchange():
            try:
                return super().read(*arguments)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                self._explain(error, _caller(sys._getframe(1)))  # noqa: SLF001 - as in do_handshake
            finally:
                if self.resumption is not None:
                    self.resumption.after_read(self._sslobj)

    def write(self, data: Any) -> int:  # noqa: ANN401 - a buffer
        """As `ssl.SSLObject.write`."""
        with self._exchange():
            return super().write(data)

    def unwrap(self) -> None:
        """As `ssl.SSLObject.unwrap`."""
        with self._exchange():
            super().unwrap()

    def _step(self) -> None:
        with counted(self.context) as turn, turn or contextlib.nullcontext():
            super().do_handshake()

    def _step_in_loop(self, caller: Caller) -> None:
        self._steps += 1
        if self._steps == _SERVERS_ANSWER and self.resumption is not None and not self.resumption.offers:
            self._leave_to(caller, self._sign)  # it will sign, after half a millisecond of verifying the server
        try:
            with signatures.stopping():
                super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if signatures.is_stop(error):
                self._leave_to(caller, self._sign)
            self._explain(error, caller)

    def _sign(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):  # the next step is the event loop's again
            self._step()

    def _explain(self, error: ssl.SSLError, caller: Caller | None) -> NoReturn:
        own = own_key(self.context)
        if own is None:
            raise error
        if caller is not None and self._is_slow_for(caller) and own.may_explain(error):
            self._leave_to(caller, partial(own.explain, error), hold_end=True)
        own.explain(error)

    def _leave_to(self, caller: Caller, work: Callable[[], None], *, hold_end: bool = False) -> NoReturn:
        if self.bridge is not None:
            self.bridge.push()
        self._outcome = caller.start(work, hold_end=hold_end)
        raise _wait()

    def _is_slow_for(self, caller: Caller) -> bool:
        """Whether the key takes time, and the ``caller`` can wait while a thread uses it."""
        own = own_key(self.context)
        if own is None or own.tcti is None:
            return False
        return self.bridge is not None or not caller.needs_bridge

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        outcome = self._outcome
        if outcome is not None and not outcome.done():
            raise _wait()
        self._outcome = None
        if self.bridge is not None:
            self.bridge.pull()
        try:
            if outcome is not None and (error := outcome.result()) is not None:
                raise error
            yield
        finally:
            if self.bridge is not None and self._outcome is None:
                self.bridge.push()


def _wait() -> ssl.SSLWantReadError:
    return ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "a thread waits for the TPM")


def _caller(frame: FrameType) -> Caller | None:
    """Who called, if it is known how that waits."""
    if frame.f_globals.get("__name__") not in {_ASYNCIO, _ANYIO}:
        return None
    from tpm_mtls.tls import event_loop  # noqa: PLC0415 - imports asyncio, which is loaded now

    return event_loop.caller(frame)


def make_bridge(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, frame: FrameType) -> Bridge | None:
    """What a TLS object needs whose maker, in ``frame``, uses the BIOs at any time; none for other makers."""
    if frame.f_globals.get("__name__") != _ASYNCIO:
        return None
    from tpm_mtls.tls.event_loop import Bridge  # noqa: PLC0415 - imports asyncio, which is loaded now

    return Bridge(incoming, outgoing)
