"""Asks the device agent for secrets.

    from tpm_mtls.secrets import Client

    password = Client().get("postgres-main-db-password")

No TPM library is loaded: the agent speaks to the TPM.
"""

from __future__ import annotations

import base64
import binascii
import re
import socket
import struct
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import AgentRefusedError, PeerUnreachableError, ResponseError, UsageError
from tpm_mtls.secrets.protocol import DEFAULT_SOCKET, MESSAGE_LIMIT, decode_answer, encode_request, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.secrets.protocol import Done, Request

TIMEOUT: Final = 180.0
"""Seconds for one request: longer than it may wait for its turn in the agent, whose own answer says more."""

_INDEX: Final = re.compile(r"0[xX][0-9A-Fa-f]{7,8}")
_PIECE: Final = 64 * 1024
_PATH_LIMIT: Final = 107  # bytes of sun_path, without its NUL: unix(7)


class Client:
    """The device agent behind a Unix socket; each call is a connection of its own, and calls may overlap.

    Every call raises `PeerUnreachableError` where no agent answers in time, `ResponseError` where what answers is none,
    `TpmRefusedError` or one of its children where the TPM refused, `AgentRefusedError` where the agent did, and
    `UsageError` for names and values that no agent takes.
    """

    def __init__(self, path: Path = DEFAULT_SOCKET, *, timeout: float = TIMEOUT) -> None:
        """Nothing is opened yet.

        Args:
            path: the agent's socket.
            timeout: seconds for each request.
        """
        self._path = Path(path)
        self._timeout = timeout

    def set(self, name: str, value: str) -> int:
        """Keeps ``value`` under ``name``, in place of what was there; durable when it returns.

        Args:
            name: 1 to 255 bytes of UTF-8 without NUL. Who knows it may get the value.
            value: at most 64 KiB of UTF-8.

        Returns:
            The name's NV index in the TPM, 0x01520000 to 0x015200FF.
        """
        index = self._ask(request("set", name, value)).index
        if not isinstance(index, str) or not _INDEX.fullmatch(index):
            raise self._no_answer("it does not say where the secret is")
        return int(index, 16)

    def get(self, name: str) -> str:
        """The value under ``name``.

        Raises:
            NoSuchSecretError: no secret has that name.
        """
        value = self._ask(request("get", name)).value
        if not isinstance(value, str):
            raise self._no_answer("it has no value")
        return value

    def delete(self, name: str) -> None:
        """Removes ``name`` and its value.

        Raises:
            NoSuchSecretError: no secret has that name.
        """
        self._ask(request("del", name))

    def set_bytes(self, name: str, value: bytes) -> int:
        """As `set`, for at most 48 KiB that are no text: kept in base64 (RFC 4648, section 4)."""
        return self.set(name, base64.b64encode(value).decode())

    def get_bytes(self, name: str) -> bytes:
        """What `set_bytes` kept under ``name``.

        Raises:
            NoSuchSecretError: no secret has that name.
            UsageError: its value is no base64.
        """
        try:
            return base64.b64decode(self.get(name), validate=True)
        except (binascii.Error, ValueError) as error:
            raise UsageError("the value is not in base64", hint="it was set as text: get it as text") from error

    def _ask(self, asked: Request) -> Done:
        message = encode_request(asked)
        deadline = time.monotonic() + self._timeout
        with self._errors(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            self._connect(connection)
            answer = _exchange(connection, message, deadline)
        if not answer:
            raise self._no_answer("the connection was closed without any")
        try:
            return decode_answer(answer, socket=self._path)
        except AgentRefusedError as error:
            if not error.rc:
                raise
            from tpm_mtls.response_codes import refusal_class  # noqa: PLC0415 - only where the TPM refused

            raise refusal_class(error.rc)(str(error), hint=error.hint, rc=error.rc) from error

    def _connect(self, connection: socket.socket) -> None:
        """Blocking, with the kernel's own time-out: a non-blocking one fails at once if the agent's queue is full."""
        if len(bytes(self._path)) > _PATH_LIMIT:
            raise UsageError(f"the socket's path is longer than {_PATH_LIMIT} bytes", hint="name it by a shorter one")
        seconds, rest = divmod(max(self._timeout, 0.001), 1)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1_000_000))
        )
        connection.connect(bytes(self._path))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise self._silent() from error
        except BlockingIOError as error:  # SO_SNDTIMEO is over: unix(7), EAGAIN of connect
            raise self._silent() from error
        except OSError as error:
            raise self._unreachable(error) from error

    def _silent(self) -> PeerUnreachableError:
        return PeerUnreachableError(
            f"the agent at {self._path} did not answer within {self._timeout:g} seconds",
            hint="is the TPM busy, or the agent stopped? see: tpm-mtls agent status; or wait longer: --timeout",
            host=str(self._path),
        )

    def _unreachable(self, error: OSError) -> PeerUnreachableError:
        hints: dict[type[OSError], str] = {
            FileNotFoundError: "start it: tpm-mtls agent run; or name its socket: --socket, $TPM_MTLS_SOCKET; "
            "in a container, mount it",
            ConnectionRefusedError: "the agent that made that socket is gone: start it again",
            PermissionError: "the socket's group may use it: add the user to that (tss), or run as root",
        }
        reason = (error.strerror or str(error)).lower()
        return PeerUnreachableError(
            f"no agent answers at {self._path}: {reason}",
            hint=hints.get(type(error), "what is there? see: tpm-mtls agent status"),
            host=str(self._path),
        )

    def _no_answer(self, why: str) -> ResponseError:
        return ResponseError(
            f"the answer at {self._path} is none of an agent: {why}",
            hint="what listens there? see: tpm-mtls agent status",
            host=str(self._path),
        )


def _exchange(connection: socket.socket, message: bytes, deadline: float) -> bytes:
    """What comes back for ``message`` until the end of the connection, but no more than one byte beyond the limit."""
    answer = b""
    try:
        connection.settimeout(_remaining(deadline))
        connection.sendall(message)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it answered, and closed, before it had read everything: a refusal, which can still be read
    try:
        while len(answer) <= MESSAGE_LIMIT:
            connection.settimeout(_remaining(deadline))
            piece = connection.recv(_PIECE)
            if not piece:
                break
            answer += piece
    except ConnectionResetError:
        if not answer:
            raise
    return answer


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
