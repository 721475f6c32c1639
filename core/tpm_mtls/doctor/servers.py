"""The servers that the doctor tries, from the URLs that the user gives."""

from __future__ import annotations

import http.client
import re
from urllib.parse import urlsplit

from tpm_mtls import est
from tpm_mtls.device_requests.messages import Server
from tpm_mtls.doctor.openssl_report import Peer, Role
from tpm_mtls.errors import UsageError


def ca_peer(url: str, *, named: bool = True) -> Peer:
    """The CA at ``url``, with or without EST's path; it is asked for its certificates (RFC 7030, 4.1).

    Raises:
        UsageError: no https URL, or one with a user, a password, a query or a fragment.
    """
    host, port, path = _split(url, "CA")
    base = path if path.startswith(est.PREFIX) else path + est.PREFIX
    return Peer(
        role="CA",
        server=_server("CA", host, port, base),
        path=est.CACERTS.removeprefix(est.PREFIX),
        named=named,
    )


def backend_peer(url: str) -> Peer:
    """The backend at ``url``; it is asked for what is there, with the device's certificate.

    Raises:
        UsageError: as `ca_peer`.
    """
    host, port, path = _split(url, "backend")
    return Peer(role="backend", server=_server("backend", host, port, ""), path=path or "/")


def _split(url: str, role: Role) -> tuple[str, int, str]:
    hint = f"give the {role} like https://{role.lower()}.example:8443"
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # RFC 1035, 2.3.4: labels of 1 to 63 octets
    except ValueError as error:
        raise UsageError(f"the {role}'s URL is none", hint=hint) from error
    # the URL itself is not repeated: it may have a password
    if parts.scheme != "https" or not parts.hostname:
        raise UsageError(f"the {role}'s URL is no https URL", hint=hint)
    if re.search(r"[^\x21-\x7e]", parts.path):  # RFC 3986, 2.1
        raise UsageError(f"the {role}'s URL has a blank or another letter that must be percent-encoded", hint=hint)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(f"the {role}'s URL has a user, a query or a fragment", hint=hint)
    return parts.hostname, port or http.client.HTTPS_PORT, parts.path.rstrip("/")


def _server(role: Role, host: str, port: int, base: str) -> Server:
    name = f"[{host}]" if ":" in host else host
    return Server(
        host=host,
        port=port,
        base=base,
        role=f"the {role}",
        url=f"https://{name}:{port}",
        advice=f"check the URL, the network (ping, DNS, firewall) and whether the {role} runs",
    )
