"""Responses that the relay makes itself: TPM 2.0 Library part 1 rev 1.59, 18.10, and part 3, 5."""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, tag_of

_PASSWORD = 0x40000009  # TPM_RS_PW
_PASSWORD_ANSWER = b"\0\0\1\0\0"  # no nonce, continueSession, no HMAC


def success(body: bytes = b"") -> bytes:
    """A response without sessions."""
    return HEADER.pack(NO_SESSIONS, HEADER.size + len(body), 0) + body


def success_with_password(parameters: bytes = b"", *, handle: bytes = b"") -> bytes:
    """The response to a command that a password authorized."""
    body = handle + len(parameters).to_bytes(4, "big") + parameters + _PASSWORD_ANSWER
    return HEADER.pack(SESSIONS, HEADER.size + len(body), 0) + body


def refused(code: int) -> bytes:
    """The TPM's response code ``code``."""
    return HEADER.pack(NO_SESSIONS, HEADER.size, code)


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return len(data).to_bytes(2, "big") + data


def password_of(command: bytes) -> bytes | None:
    """The password that alone authorizes a ``command`` with one handle; none where something else does, or nothing."""
    if tag_of(command) != SESSIONS:
        return None
    try:
        area = Reader(Reader(command, HEADER.size + 4).sized_long())
        session, nonce = area.number(4), area.sized()
        area.take(1)
        password = area.sized()
        area.end()
    except UnreadableError:
        return None
    return password if session == _PASSWORD and not nonce else None
