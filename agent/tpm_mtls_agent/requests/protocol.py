"""A request as it comes in: where its JSON object ends, and what it asks.

A client need not say that it has finished: it may leave out the newline and keep its sending side open. So the object's
last brace must be recognised, and in one pass, however the bytes arrive. A request is flat: its members are strings.
That makes it easy to be strict: an object or array inside it, a second object, or more members than any request has is
refused at once.

Members that no request has are refused too. A client that asks for something this agent does not know (an expiry, a
policy) would otherwise go on believing that it got it. Of two members with one name, parsers differ in which one they
take (RFC 8259, section 4), so what was checked might not be what was meant: refused.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tpm_mtls.errors import UsageError
from tpm_mtls.secrets.protocol import ACTIONS, MESSAGE_LIMIT, Request, check_request

EXAMPLE: Final = 'send one object such as {"action":"get","name":"NAME"}'

_TOKENS = 64  # strings and commas of a request: five with "set", seven strings with a value; the rest for good messages

_SPACE = b" \t\r\n"  # RFC 8259, section 2
_BEGIN = re.compile(rb"[ \t\r\n]*+")
_OUTSIDE = re.compile(rb'[^",{}\[\]]*+')
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class RequestReader:
    """Takes the bytes of a connection until one JSON object is complete."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # everything before is understood
        self._end = 0  # behind the object's closing brace
        self._begun = False
        self._in_string = False
        self._tokens = 0
        self._members = 1

    @property
    def empty(self) -> bool:
        """Whether nothing but white space came."""
        return not self._begun

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self._data)

    def feed(self, data: bytes) -> bool:
        """Takes what arrived; true when the object is complete. Each byte is looked at once.

        Raises:
            UsageError: these are not the beginnings of one flat JSON object, or it is too large.
        """
        self._data += data
        if len(self._data) > MESSAGE_LIMIT:
            raise UsageError(
                f"the request has more than {MESSAGE_LIMIT} bytes", hint="a value has at most 64 KiB of UTF-8"
            )
        while not self._end and self._step():
            pass
        if self._end and self._data[self._end :].strip(_SPACE):
            raise UsageError("there is something behind the request", hint="one connection for each request")
        return bool(self._end)

    def request(self) -> Request:
        """What the complete object asks.

        Raises:
            UsageError: it is no request; nothing of it is repeated in the message.
        """
        asked = _decode(bytes(self._data[: self._end]))
        if self._members != (2 if asked.value is msgspec.UNSET else 3):
            raise UsageError("the request has a member twice", hint=EXAMPLE)
        return check_request(asked)

    def _step(self) -> bool:
        """Goes on by one string or one character of structure; false when more bytes are needed."""
        skipped = self._skip().match(self._data, self._at)  # nothing at least
        self._at = skipped.end() if skipped else self._at
        if self._at >= len(self._data):
            return False
        character = bytes(self._data[self._at : self._at + 1])
        if character == b"\\":
            return False  # what it escapes has not come yet
        self._at += 1
        if not self._begun:
            self._begin(character)
        elif self._in_string:
            self._in_string = False
        else:
            self._structure(character)
        return True

    def _skip(self) -> re.Pattern[bytes]:
        if not self._begun:
            return _BEGIN
        return _INSIDE if self._in_string else _OUTSIDE

    def _begin(self, character: bytes) -> None:
        if character != b"{":
            raise UsageError("the request is no JSON object", hint=EXAMPLE)
        self._begun = True

    def _structure(self, character: bytes) -> None:
        self._tokens += 1
        if character == b"}":
            self._end = self._at
        elif character == b'"':
            self._in_string = True
        elif character == b",":
            self._members += 1
        else:
            raise UsageError("a member of the request is an object or an array", hint="all of its members are strings")
        if self._tokens > _TOKENS:
            raise UsageError("the request has too many members", hint=EXAMPLE)


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    """A request before its action is checked: so the error need not repeat it."""

    action: str
    name: str
    value: str | msgspec.UnsetType | None = msgspec.UNSET


_decoder = msgspec.json.Decoder(_Wire)

_REASONS = (  # how msgspec's texts begin; they go on with what the client wrote
    ("Object contains unknown field", "the request has a member that no request has"),
    ("Object missing required field", "the request lacks its action or its name"),
    ("Expected `str", "a member of the request is no string"),
)


def _decode(data: bytes) -> Request:
    try:
        wire = _decoder.decode(data)
    except UnicodeDecodeError as error:
        raise UsageError("the request is not UTF-8", hint="JSON is UTF-8 (RFC 8259, section 8.1)") from error
    except msgspec.ValidationError as error:
        reason = next((ours for theirs, ours in _REASONS if str(error).startswith(theirs)), "the request is malformed")
        raise UsageError(reason, hint=EXAMPLE) from error
    except msgspec.DecodeError as error:
        raise UsageError("the request is malformed JSON", hint=EXAMPLE) from error
    for action in ACTIONS:
        if wire.action == action:
            return Request(action, wire.name, wire.value)
    raise UsageError("the request's action is unknown", hint=f"there are {', '.join(ACTIONS[:-1])} and {ACTIONS[-1]}")
