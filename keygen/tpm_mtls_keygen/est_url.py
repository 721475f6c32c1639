"""Where an EST server is."""

from __future__ import annotations

import http.client
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from tpm_mtls import est
from tpm_mtls.device_requests import Server
from tpm_mtls.errors import UsageError


@dataclass(frozen=True)
class EstUrl:
    """Where an EST server is.

    Attributes:
        host: name or address, as TLS verifies it.
        port: TCP port.
        base: path before ``/cacerts``: `est.PREFIX`, with the CA's label if it has one (RFC 7030, 3.2.2).
    """

    host: str
    port: int
    base: str

    @classmethod
    def parse(cls, text: str) -> EstUrl:
        """From ``https://HOST[:PORT]``, with or without ``/.well-known/est[/LABEL]``.

        Raises:
            UsageError: another scheme or path, or with user, query or fragment.
        """
        hint = "give the CA like https://ca.example:8443"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"not a URL: {text[:80]!r}", hint=hint) from error
        if parts.scheme != "https":
            raise UsageError(f"the CA's URL is not https: {text[:80]!r}", hint=hint)
        if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
            raise UsageError(f"not an EST server's URL: {text[:80]!r}", hint=hint)
        path = parts.path.rstrip("/")
        if path and not re.fullmatch(re.escape(est.PREFIX) + r"(/[A-Za-z0-9._~-]+)?", path):
            raise UsageError(f"not the path of an EST server: {path[:80]!r}", hint=hint)
        return cls(parts.hostname, port or http.client.HTTPS_PORT, path or est.PREFIX)

    @property
    def server(self) -> Server:
        """The same, for requests over HTTPS."""
        advice = "check the URL, the network and whether the CA runs; --wait SECONDS keeps trying"
        return Server(self.host, self.port, self.base, "the CA", str(self), advice)

    def __str__(self) -> str:
        """As one gives it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}" + ("" if self.base == est.PREFIX else self.base)
