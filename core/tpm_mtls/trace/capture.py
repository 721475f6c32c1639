"""Reading which commands a program sent to the TPM, from a capture that libtss2 itself wrote, or the relay.

libtss2's ``pcap`` TCTI stands before any other one (``pcap:device:/dev/tpmrm0``) and writes every command and response
to the file that the environment variable TCTI_PCAP_FILE names: a pcapng file (draft-ietf-opsawg-pcapng) of link type
IPV4, in which each TPM message is wrapped in made-up IPv4 and TCP headers, commands towards port 2321. The relay
(``tpm-mtls trace --pcap``) writes the same, each command with its response, so that programs may share a file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import PemError
from tpm_mtls.files import read_capped
from tpm_mtls.trace.commands import command_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CAPTURE_LIMIT = 64 * 1024 * 1024
"""Bytes of a capture: 100,000 handshakes fit."""

_ENHANCED_PACKET = 6
_COMMAND_PORT = 2321
_IP_AND_TCP = 40  # bytes of the made-up headers, both without options
_MESSAGE_HEADER = struct.Struct(">HII")  # tag, size, command or response code: part 1, 18.1 and part 3, 5
_PACKET_HEADER = struct.Struct(
    "<IIIIIII"
)  # type, length, interface, time (high, low, microseconds), captured, original


@dataclass(frozen=True)
class TracedCommand:
    """One command and what came back.

    Attributes:
        code: TPM_CC.
        response: response code, 0 for success; none when the capture ends before the answer.
        started: when it was sent, seconds since the epoch.
        seconds: how long the TPM took; none without an answer.
    """

    code: int
    response: int | None
    started: float
    seconds: float | None

    @property
    def name(self) -> str:
        """The command's name without TPM2_, such as ``Sign``; its number where it is unknown."""
        return command_name(self.code)


def read_trace(path: Path) -> list[TracedCommand]:
    """The commands in the capture ``path``, in order; a last packet that is cut off is left out.

    Raises:
        StorageError: it cannot be read.
        PemError: it is no such capture, or larger than `CAPTURE_LIMIT`.
    """
    commands: list[TracedCommand] = []
    for time, is_command, code in _messages(read_capped(path, limit=CAPTURE_LIMIT), path):
        if is_command:
            commands.append(TracedCommand(code, response=None, started=time, seconds=None))
        elif commands:
            last = commands[-1]
            commands[-1] = TracedCommand(last.code, response=code, started=last.started, seconds=time - last.started)
    return commands


def _messages(capture: bytes, path: Path) -> Iterator[tuple[float, bool, int]]:
    offset = 0
    while offset + 12 <= len(capture):
        kind, length = struct.unpack_from("<II", capture, offset)
        if length < 12 or length % 4:  # noqa: PLR2004 - pcapng, section 3.1: type, length and length again, 4-aligned
            raise PemError(f"{path} is no capture of libtss2's pcap transport", hint="record one with --tcti pcap:TCTI")
        if offset + length > len(capture):
            return
        if kind == _ENHANCED_PACKET:
            yield _message(capture[offset : offset + length], path)
        offset += length


def _message(block: bytes, path: Path) -> tuple[float, bool, int]:
    start = _PACKET_HEADER.size
    if len(block) < start + _IP_AND_TCP + _MESSAGE_HEADER.size:
        raise PemError(f"{path} has a packet that is no TPM message", hint="record the capture again")
    _, _, _, high, low, _, _ = _PACKET_HEADER.unpack_from(block)
    (destination,) = struct.unpack_from(">H", block, start + 22)  # the TCP header begins after 20 bytes of IPv4
    _, _, code = _MESSAGE_HEADER.unpack_from(block, start + _IP_AND_TCP)
    return (high << 32 | low) / 1e6, destination == _COMMAND_PORT, code
