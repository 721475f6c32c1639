"""A policy session of the TPM: unbound, unsalted, nothing encrypted, and gone when its one signature is made.

TPM 2.0 Library part 1 rev 1.59, 19 (sessions, their HMAC, enhanced authorization); part 3, 23 (the policy commands).
"""

from __future__ import annotations

import hashlib
import hmac
import os

from tpm_mtls_relay.errors import MALFORMED_RESPONSE, RelayError, TransportError, UnreadableError
from tpm_mtls_relay.messages.commands import (
    FLUSH_CONTEXT,
    POLICY_AUTH_VALUE,
    POLICY_RESTART,
    SIGN,
    START_AUTH_SESSION,
)
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import sized, success_with_password
from tpm_mtls_relay.messages.wire import HEADER, SESSIONS, code_of, simple_command
from tpm_mtls_relay.policies.digest import name_algorithm
from tpm_mtls_relay.policies.file import Nv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.policies.paths import Step
    from tpm_mtls_relay.policies.request import SignRequest

PASSWORD = 0x40000009  # TPM_RS_PW
_NOBODY = 0x40000007  # TPM_RH_NULL
EMPTY_PASSWORD = PASSWORD.to_bytes(4, "big") + bytes(5)
"""A TPMS_AUTH_COMMAND: no nonce, no attributes, no authorization value."""

_POLICY_SESSION = b"\x01"  # TPM_SE_POLICY
_NO_ENCRYPTION = b"\x00\x10"  # TPM_ALG_NULL
_NONCE_SIZE = 16
_ENDS = b"\x00"  # TPMA_SESSION, continueSession clear: the session ends with the signature


class TpmRefusalError(RelayError):
    """The TPM answered with a response code; the program gets it as it is."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the TPM answered {code:#x}", code)


def answer_of(exchange: Exchange, command: bytes) -> Reader:
    """What follows the header of the response to ``command``.

    Raises:
        TpmRefusalError: the TPM refuses it.
        RelayError: no TPM answers.
    """
    response = exchange(command)
    if code_of(response) != 0:
        raise TpmRefusalError(code_of(response))
    return Reader(response, HEADER.size)


def remove(exchange: Exchange, handle: int) -> bool:
    """Flushes an object or session; returns whether that worked. Whoever cleans up has no use for another error."""
    try:
        return code_of(exchange(simple_command(FLUSH_CONTEXT, handle.to_bytes(4, "big")))) == 0
    except RelayError:
        return False


def malformed(error: UnreadableError) -> TransportError:
    """The error for a response that is too short or too long."""
    return TransportError(f"the TPM answered garbage: {error}", MALFORMED_RESPONSE)


def command_with_sessions(code: int, handles: tuple[int, ...], area: bytes, parameters: bytes) -> bytes:
    """A command with the authorization area ``area``."""
    body = b"".join(handle.to_bytes(4, "big") for handle in handles)
    body += len(area).to_bytes(4, "big") + area + parameters
    return HEADER.pack(SESSIONS, HEADER.size + len(body), code) + body


class PolicySession:
    """A session for the key with the Name ``key_name``; `close` it on every path.

    Each method raises `TpmRefusalError` if the TPM refuses the command, and `RelayError` if none answers.
    """

    def __init__(self, exchange: Exchange, key_name: bytes) -> None:
        self._exchange = exchange
        self._key_name = key_name
        self._algorithm = name_algorithm(key_name)
        self._nonce = b""
        self._handle: int | None = None
        self._is_fresh = True
        self._needs_value = False

    def start(self) -> None:
        """Begins with nothing asserted; costs a command only where something was, or there is no session yet."""
        self._needs_value = False
        if self._handle is None:
            self._open()
        elif not self._is_fresh:
            answer_of(self._exchange, simple_command(POLICY_RESTART, handles=(self._handle,)))
        self._is_fresh = True

    def assert_step(self, step: Step, ending: bytes = b"") -> None:
        """Sends one of the policy commands, with ``ending`` after its parameters."""
        assert self._handle is not None  # noqa: S101 - start comes first
        parameters = step.parameters + ending
        if isinstance(step.subject, Nv):
            # authorized by the index itself: a counter that anybody may read
            handles = (step.subject.index, step.subject.index, self._handle)
            command = command_with_sessions(step.code, handles, EMPTY_PASSWORD, parameters)
        else:
            command = simple_command(step.code, parameters, handles=(self._handle,))
        answer_of(self._exchange, command)
        self._is_fresh = False
        self._needs_value |= step.code == POLICY_AUTH_VALUE

    def sign(self, request: SignRequest) -> bytes:
        """The response to ``request``, as if the password had sufficed; the session is gone then.

        Raises:
            TransportError: with MALFORMED_RESPONSE, if it is none, or proves no knowledge of the authorization value.
        """
        assert self._handle is not None  # noqa: S101 - start comes first
        nonce = os.urandom(_NONCE_SIZE)
        proof = b""
        if self._needs_value:
            sent = self._hash(SIGN.to_bytes(4, "big") + self._key_name + request.parameters)
            proof = self._hmac(request.password, sent + nonce + self._nonce + _ENDS)
        area = self._handle.to_bytes(4, "big") + sized(nonce) + _ENDS + sized(proof)
        answer = answer_of(self._exchange, command_with_sessions(SIGN, (request.key,), area, request.parameters))
        try:
            parameters = answer.sized_long()
            their_nonce, attributes, their_proof = answer.sized(), answer.take(1), answer.sized()
            answer.end()
        except UnreadableError as error:
            raise malformed(error) from error
        if self._needs_value:
            received = self._hash(bytes(4) + SIGN.to_bytes(4, "big") + parameters)
            expected = self._hmac(request.password, received + their_nonce + nonce + attributes)
            if not hmac.compare_digest(expected, their_proof):
                raise TransportError("the response's HMAC is wrong: it does not come from the TPM", MALFORMED_RESPONSE)
        self._handle = None
        return success_with_password(parameters)

    def close(self) -> None:
        """Removes the session, if it is still there."""
        if self._handle is not None:
            remove(self._exchange, self._handle)
            self._handle = None

    def _open(self) -> None:
        nobody = _NOBODY.to_bytes(4, "big")
        hash_algorithm = self._key_name[:2]
        parameters = sized(os.urandom(_NONCE_SIZE)) + sized(b"") + _POLICY_SESSION + _NO_ENCRYPTION + hash_algorithm
        command = simple_command(START_AUTH_SESSION, nobody + nobody + parameters)
        answer = answer_of(self._exchange, command)
        try:
            self._handle = answer.number(4)
            self._nonce = answer.sized()
            answer.end()
        except UnreadableError as error:
            raise malformed(error) from error

    def _hash(self, data: bytes) -> bytes:
        return hashlib.new(self._algorithm, data).digest()

    def _hmac(self, key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, self._algorithm)
