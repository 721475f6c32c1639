"""What is answered: reading it with a cap, and turning HTTP errors into one line for a person."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tpm_mtls.errors import RequestRefusedError, ResponseError
from tpm_mtls_client.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from urllib3 import BaseHTTPResponse

RESPONSE_LIMIT = 16 * 1024 * 1024
"""Bytes of an answer's body unless told otherwise: enough for anything a device asks for, little for its memory."""

_EXPLANATION_LIMIT = 300  # characters shown of a server's explanation: a few lines on a terminal
_PIECE = 64 * 1024  # bytes read at once
_FIRST_REDIRECT, _FIRST_ERROR = 300, 400


@dataclass(frozen=True)
class Response:
    """An answer, read to its end.

    Attributes:
        status: HTTP status code; redirects are not followed.
        headers: names in any case; several fields of one name are joined with a comma.
        body: as the server sent it; no content coding was asked for.
        url: where it came from, without the query.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    url: str

    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """The body, parsed as JSON.

        Raises:
            ResponseError: it is none.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ResponseError(
                f"the answer of {self.url} is no JSON (status {self.status})", hint=self._hint(), host=self.url
            ) from error

    def raise_for_status(self) -> Response:
        """This response itself, unless its status says that the server did not do what was asked.

        Raises:
            RequestRefusedError: status 400 or above, or a redirect, which is not followed; the message carries the
                server's explanation in short.
        """
        if self.status < _FIRST_REDIRECT:
            return self
        explanation = self.explanation()
        if self.status < _FIRST_ERROR and "Location" in self.headers:
            explanation = f"go to {one_line(self.headers['Location'], _EXPLANATION_LIMIT)}"
        raise RequestRefusedError(
            f"{self.url} answers {self.status}" + (f": {explanation}" if explanation else ""),
            hint=self._hint(),
            status=self.status,
        )

    def explanation(self) -> str:
        """The server's words in one line: no control characters, no markup, at most 300 characters; may be empty."""
        text = self.body[: 16 * _EXPLANATION_LIMIT].decode(errors="replace")
        found = _json_text(text, "error", "detail", "message", "title") or re.sub(r"<[^>]*>", " ", text)
        return one_line(found, _EXPLANATION_LIMIT)

    def _hint(self) -> str:
        if _FIRST_REDIRECT <= self.status < _FIRST_ERROR:
            return "redirects are not followed: give the URL that is meant"
        advice = _json_text(self.body[: 16 * _EXPLANATION_LIMIT].decode(errors="replace"), "hint")
        if advice:
            return f"the server says: {one_line(advice, _EXPLANATION_LIMIT)}"
        return _HINTS.get(self.status, "the server's log says more")


_HINTS = {
    400: "the request does not fit what the server expects; nginx also answers so when it refuses a client certificate",
    401: "the server wants to know who asks: is this the identity that was meant?",
    403: "the server knows this certificate, and does not let it do that (revoked, or not its business)",
    404: "the server has nothing there: check the path",
    405: "the server does not take that method there",
    413: "the server takes no body of that size",
    415: "the server does not take that type of body: --content-type",
    429: "too many requests: wait",
    503: "the server is not ready: try again later",
}


def read_body(answer: BaseHTTPResponse, *, limit: int, peer: str) -> bytes:
    """The body of ``answer``; its connection is kept for the next request, or closed on failure.

    Raises:
        ResponseError: it has more than ``limit`` bytes, or a chunk of a negative number of bytes.
        urllib3.exceptions.HTTPError: it cannot be read to its end.
    """
    pieces: list[bytes] = []
    left = limit
    announced = getattr(answer, "length_remaining", None)
    if announced is None or announced <= limit:
        try:
            for piece in answer.stream(_PIECE):
                left -= len(piece)
                if left < 0:
                    break
                pieces.append(piece)
            else:
                return b"".join(pieces)
        except ValueError as error:  # urllib3 2.8 lets it through for a chunk of negative length
            raise ResponseError(
                f"the answer of {peer} is not proper HTTP: invalid chunk length",
                hint="is it an HTTPS server?",
                host=peer,
            ) from error
    answer.close()
    raise ResponseError(
        f"the answer of {peer} is larger than {limit} bytes",
        hint="allow more with response_limit, if that is what was asked for",
        host=peer,
    )


def _json_text(text: str, *names: str) -> str | None:
    """The first text that a JSON error object has under one of ``names`` (RFC 9457: ``detail``, ``title``)."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(data, dict):
        for name in names:
            if isinstance(data.get(name), str):
                return str(data[name])
    return None
