"""TPM commands and responses as bytes: TPM 2.0 Library part 1 rev 1.59, 18 (command and response structure)."""

from __future__ import annotations

import struct

from tpm_mtls_relay.errors import (
    MALFORMED_RESPONSE,
    MalformedCommandError,
    RelayError,
    TransportError,
    UnreadableError,
)
from tpm_mtls_relay.messages.commands import handle_count
from tpm_mtls_relay.messages.reader import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Exchange = Callable[[bytes], bytes]
    """A layer: takes a whole command, gives its whole response; raises `RelayError`."""

HEADER = struct.Struct(">HII")
"""Tag, size, command or response code."""

NO_SESSIONS = 0x8001
SESSIONS = 0x8002

MESSAGE_LIMIT = 4096
"""Bytes of a command or response; chips have 1,280 to 4,096 (TPM_PT_MAX_COMMAND_SIZE), libtss2's buffers 4,096."""


def size_of(header: bytes) -> int:
    """The whole command's size, by its first ten bytes.

    Raises:
        MalformedCommandError: they begin no command.
    """
    tag, size, _ = HEADER.unpack(header)
    if tag not in {NO_SESSIONS, SESSIONS} or not HEADER.size <= size:
        raise MalformedCommandError(f"no TPM command: tag {tag:#x}, {size} bytes")
    return int(size)


def code_of(message: bytes) -> int:
    """TPM_CC of a whole command, or the response code of a whole response."""
    return int(HEADER.unpack_from(message)[2])


def tag_of(message: bytes) -> int:
    """TPM_ST of a whole command or response: `NO_SESSIONS` or `SESSIONS`."""
    return int(HEADER.unpack_from(message)[0])


def handles_of(command: bytes) -> tuple[int, ...]:
    """The handles before the authorization area; none where the command is unknown.

    Raises:
        UnreadableError: the command is too short for them.
    """
    reader = Reader(command, HEADER.size)
    return tuple(reader.number(4) for _ in range(handle_count(code_of(command)) or 0))


def sessions_of(command: bytes) -> list[tuple[int, int]]:
    """Handle and attributes (TPMA_SESSION) of each session in the authorization area, passwords (0x40000009) included.

    Empty where the command is unknown or its area unreadable: the TPM refuses those.
    """
    if tag_of(command) != SESSIONS or handle_count(code_of(command)) is None:
        return []
    found = []
    try:
        reader = Reader(command, HEADER.size + 4 * len(handles_of(command)))
        area = Reader(reader.sized_long())
        while not area.at_end:
            handle = area.number(4)
            area.sized()  # nonce
            found.append((handle, area.number(1)))
            area.sized()  # HMAC or password
    except UnreadableError:
        return []
    return found


def parameters_of(command: bytes) -> bytes:
    """What comes after handles and authorization area; empty where the command is unknown.

    Raises:
        UnreadableError: the command is too short for them.
    """
    if handle_count(code_of(command)) is None:
        return b""
    reader = Reader(command, HEADER.size + 4 * len(handles_of(command)))
    if tag_of(command) == SESSIONS:
        reader.sized_long()
    return reader.rest()


def check_response(response: bytes) -> bytes:
    """``response`` itself, if its header tells the truth.

    Raises:
        TransportError: it does not.
    """
    if len(response) >= HEADER.size:
        tag, size, _ = HEADER.unpack_from(response)
        if tag in {NO_SESSIONS, SESSIONS, 0x00C4} and size == len(response):  # 0xC4: a TPM 1.2, for its caller to see
            return response
    raise TransportError("the TPM answered garbage", MALFORMED_RESPONSE)


def refusal(error: RelayError) -> bytes:
    """The response that tells the program about ``error``."""
    return HEADER.pack(NO_SESSIONS, HEADER.size, error.code)


def simple_command(code: int, parameters: bytes = b"", *, handles: tuple[int, ...] = ()) -> bytes:
    """A command without sessions."""
    body = b"".join(handle.to_bytes(4, "big") for handle in handles) + parameters
    return HEADER.pack(NO_SESSIONS, HEADER.size + len(body), code) + body
