"""What is asked: checking URL, method and headers before anything is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from tpm_mtls.errors import UsageError
from tpm_mtls_client.dial import Peer

if TYPE_CHECKING:
    from collections.abc import Mapping

_HTTPS_PORT = 443

# RFC 9110, 5.6.2 (token) and 5.5 (field values: visible characters, spaces and tabs; no line breaks)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

# who may set these decides where a message ends (RFC 9112, 6), so nobody but urllib3 does
_FRAMING = {"content-length", "transfer-encoding", "connection", "host", "expect", "upgrade", "te", "trailer"}


@dataclass(frozen=True)
class Target:
    """Where a request goes.

    Attributes:
        peer: host and port.
        path: path and query, as in the request's first line.
    """

    peer: Peer
    path: str


def parse_target(url: str, *, base_url: str | None = None) -> Target:
    """The target that ``url`` names: absolute, or a path (``/whoami``) on ``base_url``.

    Raises:
        UsageError: it is no URL, not https, has no host, or has a user name or password in it.
    """
    if url.startswith("/") and base_url is not None:
        url = base_url.rstrip("/") + url
    try:
        parsed = parse_url(url)
    except LocationParseError as error:
        raise _not_a_url(url) from error
    if parsed.scheme != "https":
        raise UsageError(
            f"not an https URL: {_shown(url)}", hint="it starts with https://; there is no way without TLS"
        )
    if parsed.auth is not None:
        raise UsageError("the URL has a user name or password in it", hint="the certificate says who is asking")
    host = (parsed.host or "").strip("[]")
    if not host or parsed.port == 0:
        raise _not_a_url(url)
    return Target(Peer(host, parsed.port or _HTTPS_PORT), parsed.request_uri)


def check_method(method: str) -> str:
    """``method`` in capitals.

    Raises:
        UsageError: it is no token, or CONNECT, which is for proxies.
    """
    if not _TOKEN.fullmatch(method) or method.upper() == "CONNECT":
        raise UsageError(f"not a request method: {method[:20]!r}", hint="GET and POST are common")
    return method.upper()


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """A copy of ``headers``.

    Raises:
        UsageError: a name or a value would break the message (RFC 9110, 5), or decides on its framing.
    """
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise UsageError(f"not a header: {name[:40]!r}", hint="no line breaks, no control characters")
        if name.lower() in _FRAMING:
            raise UsageError(f"the header {name.lower()} is the client's own business", hint="leave it out")
    return dict(headers)


def _not_a_url(url: str) -> UsageError:
    return UsageError(f"not a URL: {_shown(url)}", hint="for example https://backend.example:8443/whoami")


def _shown(url: str) -> str:
    """``url`` without what may be a password, a token or a terminal's control sequence."""
    return repr(re.sub(r"//[^/?#]*@", "//…@", url.partition("?")[0])[:80])
