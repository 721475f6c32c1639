"""The sockets of an `IdentityContext`."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from tpm_mtls.tls.handshakes import counted, explained, in_turns

if TYPE_CHECKING:
    from tpm_mtls.tls.sessions import Resumption, Server


class IdentitySocket(ssl.SSLSocket):
    """A TLS socket that resumes an earlier session where it can, and knows why a handshake failed.

    Attributes:
        resumption: its part in its context's sessions; none on the server's side.
    """

    resumption: Resumption | None = None
    _sslobj: object

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

    def read(self, *arguments: Any) -> Any:  # noqa: ANN401 - the parent's signature
        """As `ssl.SSLSocket.read`; the refusal of a handshake in TLS 1.3 arrives here."""
        try:
            with explained(self.context):
                return super().read(*arguments)
        finally:
            if self.resumption is not None:
                self.resumption.after_read(self._sslobj)

    def _server(self) -> Server:
        try:
            peer = self.getpeername()
        except OSError:  # it is gone already; the handshake will say so
            return self.server_hostname, None
        return self.server_hostname, peer[1] if isinstance(peer, tuple) else None
