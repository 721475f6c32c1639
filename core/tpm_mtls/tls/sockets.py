"""The sockets of an `IdentityContext`."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from tpm_mtls.tls.handshakes import counted, explained, following, in_turns, own_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.tls.sessions import Resumption, Server

_CUT_OFF = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)


class IdentitySocket(ssl.SSLSocket):
    """A TLS socket that resumes an earlier session where it can, and knows why a handshake failed.

    Attributes:
        resumption: its part in its context's sessions; none on the server's side.
    """

    resumption: Resumption | None = None
    _sslobj: object
    _may_be_refused = False
    _cause: BaseException | None = None

    @property
    def context(self) -> ssl.SSLContext:
        """The context in use; a server-name callback may choose another one."""
        return super().context

    @context.setter
    def context(self, chosen: ssl.SSLContext) -> None:
        with following(chosen):
            ssl.SSLSocket.context.__set__(self, chosen)  # type: ignore[attr-defined]  # a property

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the parent's signature
        """As `ssl.SSLSocket.do_handshake`, with a `TpmMtlsError` as the cause of its error if the own key failed."""
        if self.resumption is not None:
            self.resumption.before_handshake(self._sslobj, self._server())
        with counted(self.context) as turn:
            if turn is None:
                super().do_handshake(block)
            else:
                in_turns(self, super().do_handshake, turn, block=block)
        if self.resumption is not None:
            self.resumption.after_handshake(self._sslobj)
        # a client of TLS 1.3, until the server has sent something
        self._may_be_refused = not self.server_side and not self.session_reused and self.version() == "TLSv1.3"

    def read(self, *arguments: Any) -> Any:  # noqa: ANN401 - the parent's signature
        """As `ssl.SSLSocket.read`; the refusal of a handshake in TLS 1.3 arrives here."""
        try:
            with self._refusal_explained():
                data = super().read(*arguments)
            self._may_be_refused = False
            return data
        finally:
            if self.resumption is not None:
                self.resumption.after_read(self._sslobj)

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401 - the parent's signature
        """As `ssl.SSLSocket.send`; a server that has refused the handshake may not even take what comes then."""
        with self._refusal_explained():
            return super().send(data, flags)

    @contextlib.contextmanager
    def _refusal_explained(self) -> Iterator[None]:
        """A server refuses a client of TLS 1.3 after the client's handshake is done: by an alert, and then, because it
        leaves the rest of that handshake unread, TCP resets the connection. Who writes meanwhile sees only that.
        """  # noqa: D205 - one thought
        try:
            with explained(self.context):
                yield
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            own = own_key(self.context)
            if own is None or not self._may_be_refused:
                raise
            if error.__cause__ is None and self._cause is not None:
                raise error from self._cause  # the alert, after the reset
            if not isinstance(error, _CUT_OFF):
                raise
            self._cause = own.cause_of_cut_off()
            raise error from self._cause

    def _server(self) -> Server:
        try:
            peer = self.getpeername()
        except OSError:  # it is gone already; the handshake will say so
            return self.server_hostname, None
        return self.server_hostname, peer[1] if isinstance(peer, tuple) else None
