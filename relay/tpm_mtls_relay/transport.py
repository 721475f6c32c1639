"""The way to the TPM: a device file, swtpm's socket, another relay, or any TCTI through tpm2-tools' tpm2_send."""

from __future__ import annotations

import _socket  # the module socket costs 10 ms of start-up
import os
import select

from tpm_mtls_relay.errors import TransportError
from tpm_mtls_relay.wire import HEADER, MESSAGE_LIMIT, check_response

PATIENCE = 300.0
"""Seconds for one command; making an RSA key takes a slow chip half a minute, a self test more."""


class DeviceTransport:
    """``device:PATH``: one write and one read for each command."""

    def __init__(self, path: str) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise TransportError(f"cannot open {path}: {error.strerror}") from error

    def __call__(self, command: bytes) -> bytes:
        """Sends ``command`` and waits for the response."""
        try:
            os.write(self._descriptor, command)
            wait_until_readable(self._descriptor)
            return check_response(os.read(self._descriptor, MESSAGE_LIMIT))
        except OSError as error:
            raise TransportError(f"the TPM's device failed: {error.strerror}") from error

    def close(self) -> None:
        """Gives the device back."""
        os.close(self._descriptor)


class StreamTransport:
    """A byte stream in each direction: a socket, or a program's stdin and stdout."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing

    def __call__(self, command: bytes) -> bytes:
        """Sends ``command`` and waits for the response."""
        try:
            remaining = memoryview(command)
            while remaining:
                remaining = remaining[os.write(self._writing, remaining) :]
            header = self._read(HEADER.size)
            _, size, _ = HEADER.unpack(header)
            return check_response(header + self._read(min(size, MESSAGE_LIMIT) - HEADER.size))
        except OSError as error:
            raise TransportError(f"the connection to the TPM broke: {error.strerror}") from error

    def close(self) -> None:
        """Ends the connection."""
        for descriptor in {self._reading, self._writing}:
            os.close(descriptor)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            wait_until_readable(self._reading)
            piece = os.read(self._reading, size - len(data))
            if not piece:
                raise TransportError("the connection to the TPM was closed")
            data += piece
        return data


def wait_until_readable(descriptor: int) -> None:
    """Returns when there is something to read.

    Raises:
        TransportError: the TPM did not answer within `PATIENCE`.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(PATIENCE * 1000):
        raise TransportError("the TPM did not answer in time")


def open_transport(tcti: str) -> DeviceTransport | StreamTransport:
    """The transport for ``tcti``.

    Raises:
        TransportError: nobody answers there.
    """
    name, _, configuration = tcti.partition(":")
    if name == "device":
        return DeviceTransport(configuration or "/dev/tpmrm0")
    if name == "swtpm":
        return _swtpm(configuration)
    raise TransportError(f"unknown transport {name}")


def _swtpm(configuration: str) -> StreamTransport:
    settings = dict(part.partition("=")[::2] for part in configuration.split(",") if part)
    connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        connection.connect((settings.get("host", "127.0.0.1"), int(settings.get("port", "2321"))))
        connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    except OSError as error:
        raise TransportError(f"no TPM answers at {configuration}: {error.strerror}") from error
    descriptor = connection.detach()
    return StreamTransport(descriptor, descriptor)
