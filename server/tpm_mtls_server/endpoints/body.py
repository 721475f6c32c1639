"""Reading a request's body: JSON, so large at the most, within so many seconds."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tpm_mtls_server.http import Refusal


async def read_body(request: web.BaseRequest, *, limit: int, timeout: float) -> bytes:  # noqa: ASYNC109 - as asyncio.timeout, for the whole body
    """The body of ``request``: it says that it is JSON in UTF-8, and is not decoded here.

    Args:
        request: whose.
        limit: bytes at the most, chunked or not.
        timeout: seconds that it may take.

    Raises:
        Refusal: 400, 408, 413, 415 or 417.
    """
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() != "utf-8":
        raise Refusal(415, "expected application/json in UTF-8")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(415, "expected no content coding")
    if (request.content_length or 0) > limit:
        raise Refusal(413, f"larger than {limit} bytes", close=True)
    await _continue(request)
    try:
        async with asyncio.timeout(timeout):
            return await _read(request, limit)
    except TimeoutError as error:
        raise Refusal(408, "the body came too slowly", close=True) from error
    except web.RequestPayloadError as error:  # by aiohttp's parser in Python; the one in C says nothing until 408
        raise Refusal(400, "the body is malformed", close=True) from error


async def _read(request: web.BaseRequest, limit: int) -> bytes:
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > limit:
            raise Refusal(413, f"larger than {limit} bytes", close=True)
    return bytes(body)


async def _continue(request: web.BaseRequest) -> None:
    """Tells a client that waits for it to go on (RFC 9110, 10.1.1)."""
    expectation = request.headers.get("Expect")
    if expectation is None:
        return
    if expectation.lower() != "100-continue":
        raise Refusal(417, "expectation failed", close=True)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # that was not yet the answer
