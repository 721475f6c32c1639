"""The client: requests over mutual TLS with one identity."""

from __future__ import annotations

import json as json_module
import logging
import ssl
from typing import TYPE_CHECKING, Any, Self

from urllib3.exceptions import HTTPError

from tpm_mtls.errors import KeyGoneError, UsageError
from tpm_mtls.tls import client_context
from tpm_mtls_client.http_errors import request_error
from tpm_mtls_client.pool import Pools
from tpm_mtls_client.request import check_headers, check_method, parse_target
from tpm_mtls_client.response import RESPONSE_LIMIT, Response, read_body
from tpm_mtls_client.timing import Budget, Timeout, current_budget, spending, time_sockets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpm_mtls.authorization import Secret
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity
    from tpm_mtls.tls import IdentityContext
    from tpm_mtls_client.request import Target

_log = logging.getLogger("tpm_mtls.client")

_USER_AGENT = "tpm-mtls-client"


def connect(  # noqa: PLR0913 - one keyword per setting
    identity: Identity,
    *,
    base_url: str | None = None,
    tcti: str | None = None,
    authorization: Secret | None = None,
    relay: RelayUse | None = None,
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    timeout: Timeout | None = None,
    response_limit: int = RESPONSE_LIMIT,
) -> Client:
    """A client for ``identity``, its key loaded; connections are made when requests need them.

    Args:
        identity: key, certificate and trust anchors (`tpm_mtls.identity.load_identity`).
        base_url: what a request's path is added to, such as ``https://backend.example:8443``.
        tcti: where the TPM is; the environment's TPM_MTLS_TCTI, then the kernel's resource manager by default.
        authorization: the key's authorization value.
        relay: whether a TPM key is used through the relay; see `tpm_mtls.tls.client_context`.
        minimum_version: TLS 1.3; TLS 1.2 for an old server.
        timeout: for each request; `Timeout`'s own values by default.
        response_limit: bytes of an answer's body.

    Raises:
        UsageError: ``base_url`` is no https URL.
        TpmUnavailableError, TpmRefusedError: the TPM does not load the key.
        CredentialError, StorageError: the key, the certificate or the trust anchors are unusable.
        OpensslError: this process's OpenSSL, or its tpm2 provider, cannot do it.
    """
    if base_url is not None:
        parse_target(base_url)
    context = client_context(
        identity, tcti=tcti, authorization=authorization, relay=relay, minimum_version=minimum_version
    )
    return Client(context, base_url=base_url, timeout=timeout, response_limit=response_limit)


class Client:
    """Requests over mutual TLS; several threads may share one.

    Connections are kept and used again. Redirects are not followed and requests not repeated, with one exception: when
    the TPM restarted and lost the key, the handshake fails, so that the peer never took the request; then the context
    has loaded the key again, and the request is sent once more. Proxies of the environment are not used.

    Attributes:
        context: the ``ssl.SSLContext`` with the identity, for other libraries too. They do not load a lost key again.
    """

    def __init__(
        self,
        context: IdentityContext,
        *,
        base_url: str | None = None,
        timeout: Timeout | None = None,
        response_limit: int = RESPONSE_LIMIT,
    ) -> None:
        time_sockets(context)
        self.context = context
        self._base_url = base_url
        self._timeout = timeout or Timeout()
        self._response_limit = response_limit
        self._pools = Pools(context)

    def get(self, url: str, *, headers: Mapping[str, str] | None = None, timeout: Timeout | None = None) -> Response:
        """A GET request; see `request`."""
        return self.request("GET", url, headers=headers, timeout=timeout)

    def post(
        self,
        url: str,
        *,
        json: Any = None,  # noqa: ANN401 - any JSON value
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
    ) -> Response:
        """A POST request; see `request`."""
        return self.request("POST", url, json=json, body=body, headers=headers, timeout=timeout)

    def request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,  # noqa: ANN401 - any JSON value
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
    ) -> Response:
        """Sends one request and returns the whole answer, whatever its status (see `Response.raise_for_status`).

        Args:
            method: GET, POST, …
            url: an https URL, or a path if there is a ``base_url``.
            json: a value to send as JSON.
            body: bytes to send instead.
            headers: additional header fields.
            timeout: for this request only.

        Raises:
            UsageError: an argument is wrong; nothing was sent.
            PeerUnreachableError: nobody answers, or not in time.
            PeerUntrustedError: the peer's certificate or name does not verify.
            HandshakeError: TLS failed, or the peer refused our certificate.
            ResponseError: the answer is malformed, cut off or too large.
            TpmUnavailableError, TpmRefusedError: the TPM does not sign.
        """
        target = parse_target(url, base_url=self._base_url)
        method = check_method(method)
        fields = {"User-Agent": _USER_AGENT} | check_headers(headers or {})
        if json is not None:
            if body is not None:
                raise UsageError("a request has one body: json or body", hint="give one of them")
            body = json_module.dumps(json).encode()
            fields = {"Content-Type": "application/json"} | fields
        with spending(Budget(timeout or self._timeout)):
            try:
                return self._exchange(method, target, fields, body)
            except KeyGoneError as error:
                _log.debug("%s; it is loaded again", str(error))  # a record that is kept shall not keep the key
            return self._exchange(method, target, fields, body)

    def _exchange(self, method: str, target: Target, fields: dict[str, str], body: bytes | None) -> Response:
        peer = str(target.peer)
        try:
            answer = self._pools.send(target.peer, method, target.path, headers=fields, body=body)
            data = read_body(answer, limit=self._response_limit, peer=peer)
        except (HTTPError, OSError) as error:
            raise request_error(error, peer, current_budget()) from error
        return Response(answer.status, answer.headers, data, url=f"https://{peer}{target.path.partition('?')[0]}")

    def close(self) -> None:
        """Closes the kept connections; the client makes no new ones."""
        self._pools.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
