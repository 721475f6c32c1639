"""The nonce endpoint: draft-ietf-lamps-attestation-freshness-08, 5.1; docs/protocol.md describes what is ours."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tpm_mtls import est, freshness
from tpm_mtls_pki.evidence import Challenge, make_activation

if TYPE_CHECKING:
    from tpm_mtls_pki.exchange import ExchangeStore

COOKIE: Final = "est-exchange"
"""Its value is the exchange's ticket. A client that keeps its TLS connection need not send it."""

_NEIGHBOURS = 64  # bits: one who has an IPv6 address has all of this prefix


class NonceEndpoint:
    """Gives nonces, and finds the exchange that a later request belongs to."""

    def __init__(self, store: ExchangeStore[Challenge]) -> None:
        self._store = store

    def answer_plain(self, request: web.Request) -> web.Response:
        """The answer to a GET: a nonce, for a client that shows an attestation key's certificate."""
        challenge = Challenge(secrets.token_bytes(freshness.NONCE_LENGTH))
        return self._open(request, challenge, freshness.NonceResponse(challenge.nonce), size=0)

    async def answer(self, request: web.Request, body: bytes) -> web.Response:
        """The answer to a POST of ``body``: a nonce and, if asked for, a credential to activate.

        Raises:
            EvidenceError: it asks for something that nobody can answer.
            PemError: a key or a certificate in it cannot be read.
        """
        challenge, response = await asyncio.to_thread(_challenge, body)
        return self._open(request, challenge, response, size=len(body))

    def take(self, request: web.Request) -> Challenge | None:
        """The exchange that the client of ``request`` began, for this request alone; none if there is none."""
        return self._store.take(request.cookies.get(COOKIE), connection=_connection(request))

    def _open(
        self, request: web.Request, challenge: Challenge, response: freshness.NonceResponse, *, size: int
    ) -> web.Response:
        ticket = self._store.open(challenge, source=_source(request.remote), size=size, connection=_connection(request))
        lifetime = int(self._store.lifetime)
        response = freshness.NonceResponse(response.nonce, lifetime, response.activation)
        headers = {"Content-Type": est.NONCE_TYPE, "Cache-Control": "no-store"}
        answer = web.Response(body=freshness.encode_response(response), headers=headers)
        answer.set_cookie(
            COOKIE, ticket, max_age=lifetime, path=est.PREFIX, secure=True, httponly=True, samesite="Strict"
        )
        return answer


def _challenge(body: bytes) -> tuple[Challenge, freshness.NonceResponse]:
    request = freshness.decode_request(body)
    nonce = secrets.token_bytes(request.length or freshness.NONCE_LENGTH)
    wanted = request.activation
    if wanted is None:
        return Challenge(nonce), freshness.NonceResponse(nonce)
    activation, blob, secret = make_activation(
        ek_certificate=wanted.ek_certificate,
        ek_public=wanted.ek_public,
        ek_chain=wanted.ek_chain,
        ak_public=wanted.ak_public,
    )
    response = freshness.NonceResponse(nonce, activation=freshness.ActivationResponse(blob, secret))
    return Challenge(nonce, activation), response


def _connection(request: web.Request) -> object | None:
    """The TLS connection, as something that lives as long as it does."""
    return None if request.transport is None else request.transport.get_extra_info("ssl_object")


def _source(remote: str | None) -> str:
    """Who asks from the address ``remote``, for the fair share of what may be open at a time."""
    remote = (remote or "").partition("%")[0]
    try:
        address = ipaddress.ip_address(remote)
    except ValueError:
        return remote
    if address.version == 4:  # noqa: PLR2004 - the protocol's name
        return remote
    return str(ipaddress.ip_network((address, _NEIGHBOURS), strict=False))
