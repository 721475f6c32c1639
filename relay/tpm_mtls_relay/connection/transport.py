"""The way to the TPM: a device file, swtpm's socket, or a program that knows the way."""

from __future__ import annotations

import errno
import os
import select
import time

from tpm_mtls_relay.errors import (
    MALFORMED_RESPONSE,
    ConnectionLostError,
    KeyGoneError,
    MalformedCommandError,
    NotSwappedError,
    RelayError,
    TransportError,
)
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.wire import HEADER, MESSAGE_LIMIT, check_response, code_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Transport(Protocol):
        """An open way to the TPM."""

        def __call__(self, command: bytes, /) -> bytes:
            """Sends ``command`` and waits for the response."""

        def close(self) -> None:
            """Ends it."""


TIME_LIMIT = 120.0
"""Seconds for a command; Linux gives up after the same time (TPM2_DURATION_DEFAULT in drivers/char/tpm/tpm.h)."""

LONG_TIME_LIMIT = 300.0
"""Seconds for a command that makes a key or tests the TPM (TPM2_DURATION_LONG_LONG): RSA keys take minutes."""

_LONG = {
    commands.CREATE_PRIMARY,
    commands.CREATE,
    commands.CREATE_LOADED,
    commands.SELF_TEST,
    commands.INCREMENTAL_SELF_TEST,
}


class Deadline:
    """When the TPM must have answered a command."""

    __slots__ = ("_end",)

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds until then; raises `TransportError` when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TransportError("the TPM did not answer in time")
        return seconds

    def wait(self, descriptor: int, event: int = select.POLLIN) -> None:
        """Returns when ``descriptor`` can be read (or written: ``select.POLLOUT``), or is at its end.

        Raises:
            TransportError: that took too long.
        """
        poll = select.poll()
        poll.register(descriptor, event)
        while not poll.poll(self.remaining() * 1000):
            pass


class Limits:
    """How long the TPM may take.

    Attributes:
        cap: seconds for any command.
    """

    __slots__ = ("cap",)

    def __init__(self, cap: float = LONG_TIME_LIMIT) -> None:
        self.cap = cap

    def deadline(self, command: bytes) -> Deadline:
        """When it must have answered ``command``, which is about to be sent."""
        return Deadline(min(self.cap, LONG_TIME_LIMIT if code_of(command) in _LONG else TIME_LIMIT))


class DeviceTransport:
    """``device:PATH``: one write and one read for each command (drivers/char/tpm/tpm-dev-common.c)."""

    def __init__(self, path: str, limits: Limits) -> None:
        """Opens ``path``.

        Raises:
            TransportError: that fails.
        """
        self._limits = limits
        try:
            # without O_NONBLOCK the write itself would take until the TPM has answered
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise TransportError(f"cannot open {path}: {error.strerror}") from error

    def __call__(self, command: bytes) -> bytes:
        """Sends ``command`` and waits for the response."""
        deadline = self._limits.deadline(command)
        try:
            os.write(self._descriptor, command)
            deadline.wait(self._descriptor)
            return check_response(os.read(self._descriptor, MESSAGE_LIMIT + 1))
        except OSError as error:
            raise device_refusal(error) from error

    def close(self) -> None:
        """Gives the device back."""
        os.close(self._descriptor)


def device_refusal(error: OSError) -> RelayError:
    """What an ``error`` of the TPM's device means. After the first two it goes on serving: of the command nothing was
    sent, and the program's objects are still there; the kernel's resource manager has only flushed its sessions.

    1. EINVAL: the kernel's resource manager knows no such object (tpm2_prepare_space in drivers/char/tpm/tpm2-space.c).
    2. E2BIG: more than the TPM's buffer takes (crb_send in drivers/char/tpm/tpm_crb.c: 3,968 bytes).
    3. EFAULT: the TPM refused to save or load an object or session (tpm2_save_context, tpm2_load_context): with
       TPM_RC_CONTEXT_GAP if another program's session is too old, or because another program fills it by /dev/tpm0.
    4. Anything else: the connection is lost.
    """  # noqa: D205 - one thought
    if error.errno == errno.EINVAL:
        return KeyGoneError("the kernel knows no such object or session")
    if error.errno == errno.E2BIG:
        return MalformedCommandError("the command is larger than the TPM takes")
    if error.errno == errno.EFAULT:
        return NotSwappedError("the kernel cannot save or load what is in the TPM; dmesg says why")
    return ConnectionLostError(f"the TPM's device failed: {error.strerror}", sent=True)


class SwtpmTransport:
    """``swtpm:host=…,port=…``: swtpm's data channel, a connection for each command.

    swtpm serves one connection at a time and lets the others wait, so a connection that is kept would shut everybody
    else out. A new one costs nothing that can be measured (TPM2_GetRandom: 72 µs against 82); libtss2 has one, too.
    """

    def __init__(self, configuration: str, limits: Limits) -> None:
        """Reads ``configuration``.

        Raises:
            TransportError: it is none of swtpm's.
        """
        settings = dict(part.partition("=")[::2] for part in configuration.split(",") if part)
        host, port = settings.pop("host", "localhost"), settings.pop("port", "2321")
        if settings or not host or not port.isdecimal() or not 0 < int(port) < 65536:  # noqa: PLR2004 - TCP ports
            raise TransportError(f"no configuration of swtpm: {configuration}")
        self._limits = limits
        self._address = host, int(port)

    def __call__(self, command: bytes) -> bytes:
        """Connects, sends ``command`` and waits for the response."""
        deadline = self._limits.deadline(command)
        descriptor = self._connect(deadline)
        try:
            return exchange(command, descriptor, descriptor, deadline)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Nothing is held between commands."""

    def _connect(self, deadline: Deadline) -> int:
        import _socket  # noqa: PLC0415 - only for swtpm; the module socket would cost 10 ms of start-up

        host, port = self._address
        connection = None
        try:
            family, kind, protocol, _, address = _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM)[0]
            connection = _socket.socket(family, kind | _socket.SOCK_CLOEXEC, protocol)
            connection.settimeout(deadline.remaining())
            connection.connect(address)
            connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            return connection.detach()
        except OSError as error:
            if connection is not None:
                connection.close()
            raise TransportError(f"no TPM answers at {host}, port {port}: {error.strerror or error}") from error


def exchange(command: bytes, writing: int, reading: int, deadline: Deadline) -> bytes:
    """Writes ``command`` to one non-blocking stream and reads its response from another, or the same, one.

    Raises:
        TransportError: a stream ended, what came is no response, or it took too long.
    """
    sent = 0
    try:
        while sent < len(command):
            deadline.wait(writing, select.POLLOUT)
            sent += os.write(writing, command[sent:])
        header = _read(reading, HEADER.size, deadline)
        size = HEADER.unpack(header)[1]
        if not HEADER.size <= size <= MESSAGE_LIMIT:
            raise TransportError("the TPM answered garbage", MALFORMED_RESPONSE)
        return check_response(header + _read(reading, size - HEADER.size, deadline))
    except OSError as error:
        raise ConnectionLostError(f"the connection to the TPM broke: {error.strerror}", sent=sent > 0) from error


class Connection:
    """The TPM: opened at the first command, and anew at the first one after a failure."""

    def __init__(self, opener: Callable[[], Transport], dropped: Callable[[], None]) -> None:
        """``opener`` opens it; ``dropped`` is told that a connection broke, and what depended on it is gone."""
        self._opener = opener
        self._dropped = dropped
        self._transport: Transport | None = None

    def __call__(self, command: bytes) -> bytes:
        """The response to ``command``."""
        if self._transport is None:
            self._transport = self._opener()
        try:
            return self._transport(command)
        except TransportError:
            self.close()
            self._dropped()
            raise

    def close(self) -> None:
        """Ends the connection, if there is one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()


def _read(descriptor: int, size: int, deadline: Deadline) -> bytes:
    data = b""
    while len(data) < size:
        deadline.wait(descriptor)
        piece = os.read(descriptor, size - len(data))
        if not piece:
            raise ConnectionLostError("the connection to the TPM was closed", sent=True)
        data += piece
    return data
