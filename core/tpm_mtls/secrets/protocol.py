"""The agent's wire protocol: one JSON object a connection, and one in answer.

``{"action":"set","name":…,"value":…}`` is answered ``{"ok":true,"index":"0x01520042"}``, ``{"action":"get","name":…}``
with ``{"ok":true,"value":…}``, ``{"action":"del","name":…}`` with ``{"ok":true}``, and whatever failed with
``{"error":…,"rc":"0x…"}``. The agent closes the connection after its answer. A client may end its object with a newline
or not, and may close its sending side or not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from tpm_mtls.errors import (
    AgentRefusedError,
    NoSuchSecretError,
    ResponseError,
    TpmMtlsError,
    TpmRefusedError,
    UsageError,
)

SOCKET_VARIABLE: Final = "TPM_MTLS_SOCKET"
"""The environment variable that names the agent's socket to who asks it."""

DEFAULT_SOCKET: Final = Path("/run/tpmd.sock")

NAME_LIMIT: Final = 255
"""Bytes of a name in UTF-8."""

VALUE_LIMIT: Final = 64 * 1024
"""Bytes of a value in UTF-8."""

MESSAGE_LIMIT: Final = 6 * (VALUE_LIMIT + NAME_LIMIT) + 2048
"""Bytes of a message: JSON writes a byte as up to six (``\\u001f``); the rest is for keys, braces and white space."""

NO_SUCH_NAME: Final = 0x18B
"""TPM_RC_HANDLE of handle 1, what a TPM says of an NV index that is not there (part 2, 6.6): so a client can tell."""

Action: TypeAlias = Literal["set", "get", "del"]

ACTIONS: Final[tuple[Action, ...]] = ("set", "get", "del")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client asks; `request` makes a checked one.

    Attributes:
        action: what to do.
        name: of which secret.
        value: what to keep; only ``set`` needs it, the others ignore one.
    """

    action: Action
    name: str
    value: str | msgspec.UnsetType | None = msgspec.UNSET


class Done(msgspec.Struct, frozen=True):
    """What the agent answers when it did it.

    Attributes:
        ok: always true.
        value: the secret, for ``get``.
        index: where it is in the TPM, such as ``0x01520042``, for ``set``.
    """

    ok: Literal[True] = True
    value: str | msgspec.UnsetType = msgspec.UNSET
    index: str | msgspec.UnsetType = msgspec.UNSET


class Failed(msgspec.Struct, frozen=True):
    """What the agent answers when it did not.

    Attributes:
        error: cause and remedy, separated by a semicolon.
        rc: the TPM's response code, hex; ``0x0`` where there is none.
    """

    error: str
    rc: str


def request(action: Action, name: str, value: str | None = None) -> Request:
    """A request that an agent understands.

    Raises:
        UsageError: the name is not 1 to 255 bytes of UTF-8 without NUL, or the value missing or above 64 KiB.
    """
    return check_request(Request(action, name, msgspec.UNSET if value is None else value))


def check_request(asked: Request) -> Request:
    """Returns ``asked``; neither message nor hint of an error says its name or its value.

    Raises:
        UsageError: the name is not 1 to 255 bytes of UTF-8 without NUL; or the value is missing for ``set``, or above
            64 KiB.
    """
    length = _utf8_length(asked.name, "name")
    if not 1 <= length <= NAME_LIMIT:
        raise UsageError(f"the name has {length} bytes", hint=f"a name has 1 to {NAME_LIMIT} bytes of UTF-8")
    if "\0" in asked.name:
        raise UsageError("the name has a NUL in it", hint="leave it out: no other program could say that name")
    if isinstance(asked.value, str):
        length = _utf8_length(asked.value, "value")
        if length > VALUE_LIMIT:
            raise UsageError(
                f"the value has {length} bytes, more than {VALUE_LIMIT}",
                hint="keep an encryption key here, and the data encrypted in a file",
            )
    elif asked.action == "set":
        raise UsageError("there is no value to set", hint='give it as a string: "value"; to remove the secret: "del"')
    return asked


def encode_request(asked: Request) -> bytes:
    """The JSON object of a checked request."""
    return msgspec.json.encode(asked)


def encode_answer(answer: Done | Failed) -> bytes:
    """The JSON object of an answer."""
    return msgspec.json.encode(answer)


def failed(error: TpmMtlsError) -> Failed:
    """The answer that tells a client of ``error``."""
    if isinstance(error, TpmRefusedError | AgentRefusedError):
        rc = error.rc
    else:
        rc = NO_SUCH_NAME if isinstance(error, NoSuchSecretError) else 0
    return Failed(f"{error}; {error.hint}", f"{rc:#x}")


def decode_answer(data: bytes, *, socket: Path = DEFAULT_SOCKET) -> Done:
    """The agent's answer.

    Args:
        data: all that came until the agent closed the connection.
        socket: where from, for errors.

    Raises:
        NoSuchSecretError: no secret has that name.
        AgentRefusedError: the agent answered with another error.
        ResponseError: that is no answer of an agent.
    """
    if len(data) > MESSAGE_LIMIT:
        raise _no_answer(f"it has more than {MESSAGE_LIMIT} bytes", socket)
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_answer(str(error), socket) from error
    if answer.ok is True:
        return Done(value=answer.value, index=answer.index)
    if not isinstance(answer.error, str) or not isinstance(answer.rc, str) or not _RC.fullmatch(answer.rc):
        raise _no_answer("it says neither ok nor error", socket)
    message, _, hint = answer.error.partition("; ")
    hint = hint or "see the agent's log"
    rc = int(answer.rc, 16)
    if rc == NO_SUCH_NAME:
        raise NoSuchSecretError(message, hint=hint)
    raise AgentRefusedError(message, hint=hint, rc=rc)


class _Answer(msgspec.Struct):
    """Either answer, of any daemon that speaks this protocol: other members are none of our business."""

    ok: bool = False
    value: str | msgspec.UnsetType = msgspec.UNSET
    index: str | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET
    rc: str | msgspec.UnsetType = msgspec.UNSET


_RC = re.compile(r"0[xX][0-9A-Fa-f]{1,8}")


def _utf8_length(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the {what} is no Unicode text: it has half a surrogate pair",
            hint="encode binary data, for example in base64",
        ) from error


def _no_answer(why: str, socket: Path) -> ResponseError:
    return ResponseError(
        f"the answer at {socket} is none of an agent: {why}",
        hint="what listens there? see: tpm-mtls agent status",
        host=str(socket),
    )
