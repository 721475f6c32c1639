"""The TLS objects of an `IdentityContext`, for programs that do their own input and output, such as asyncio."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from tpm_mtls.tls.handshakes import counted, explained

if TYPE_CHECKING:
    from tpm_mtls.tls.sessions import Resumption


class IdentityObject(ssl.SSLObject):
    """A TLS object that resumes an earlier session where it can, and knows why a handshake failed.

    Attributes:
        resumption: its part in its context's sessions; none on the server's side.
    """

    resumption: Resumption | None = None
    _sslobj: object

    def do_handshake(self) -> None:
        """As `ssl.SSLObject.do_handshake`, with a `TpmMtlsError` as the cause of its error if the own key failed."""
        if self.resumption is not None:
            self.resumption.before_handshake(self._sslobj, (self.server_hostname, None))
        with counted(self.context) as turn, turn or contextlib.nullcontext():
            super().do_handshake()
        if self.resumption is not None:
            self.resumption.after_handshake(self._sslobj)

    def read(self, *arguments: Any) -> Any:  # noqa: ANN401 - the parent's signature
        """As `ssl.SSLObject.read`; the refusal of a handshake in TLS 1.3 arrives here."""
        with explained(self.context):
            data = super().read(*arguments)
        if self.resumption is not None:
            self.resumption.after_read(self._sslobj)
        return data
