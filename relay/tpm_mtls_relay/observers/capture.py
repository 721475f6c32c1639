"""A capture of what reaches the TPM, for Wireshark, ``tshark`` and `tpm_mtls.trace.read_trace`.

The format is that of libtss2's ``pcap`` transport (tcti-pcap-builder.c): pcapng of link type IPV4; each message lies in
made-up IPv4 and TCP headers, commands towards port 2321, for which Wireshark knows the TPM's protocol. Secrets are
masked (`tpm_mtls_relay.observers.masking`).
"""

from __future__ import annotations

import os
import struct

from tpm_mtls_relay.errors import OptionError
from tpm_mtls_relay.observers.appending import AppendedFile
from tpm_mtls_relay.observers.masking import masked_command, masked_response

_SECTION = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)  # draft-ietf-opsawg-pcapng, 4.1
_INTERFACE = struct.pack("<IIHHII", 1, 20, 0xE4, 0, 0, 20)  # 4.2; LINKTYPE_IPV4, whole packets, microseconds
_PACKET = struct.Struct("<IIIIIII")  # 4.3
_PACKET_TYPE = 6
_IP = struct.Struct(">BBHHHBBHII")
_TCP = struct.Struct(">HHIIHHHH")
_DO_NOT_FRAGMENT, _TTL, _TCP_PROTOCOL = 0x4000, 255, 6
_ACK, _TCP_HEADER_WORDS = 0x10, 5 << 12
_PROGRAM_PORT, _TPM_PORT = 50000, 2321
_TPM_ADDRESS = 127 << 24 | 1
_PROGRAM_NET = 10 << 24  # the programs' addresses are 10.x.x.x by their process number
_MAGIC = _SECTION[:4]


class Capture:
    """The listener that writes a command and its response to the capture file, in one piece.

    Programs that run at once may share a file: Wireshark tells their conversations apart by address.
    """

    def __init__(self, path: str, program: int) -> None:
        """Opens ``path`` for the program with the process number ``program``.

        Raises:
            OSError: it cannot be opened.
            OptionError: it is there, and no capture.
        """
        self._file = AppendedFile(path)
        if self._file.size and not _is_capture(path):
            raise OptionError(f"{path} is no capture file")
        self._file.write(_SECTION + _INTERFACE)  # once for each relay: a section may follow another
        self._program = _PROGRAM_NET | (program & 0xFFFFFF)
        self._sent = self._received = 1

    def __call__(self, command: bytes, response: bytes, started: float, seconds: float) -> None:
        """Writes both."""
        sent = self._packet(masked_command(command), started, towards_tpm=True)
        received = self._packet(masked_response(command, response), started + seconds, towards_tpm=False)
        self._file.write(sent + received)

    def close(self) -> None:
        """Ends the capture."""
        self._file.close()

    def _packet(self, message: bytes, time: float, *, towards_tpm: bool) -> bytes:
        size = _IP.size + _TCP.size + len(message)
        addresses = (self._program, _TPM_ADDRESS) if towards_tpm else (_TPM_ADDRESS, self._program)
        ports = (_PROGRAM_PORT, _TPM_PORT) if towards_tpm else (_TPM_PORT, _PROGRAM_PORT)
        numbers = (self._sent, self._received) if towards_tpm else (self._received, self._sent)
        if towards_tpm:
            self._sent = (self._sent + len(message)) & 0xFFFFFFFF
        else:
            self._received = (self._received + len(message)) & 0xFFFFFFFF
        data = (
            _IP.pack(0x45, 0, size, 0, _DO_NOT_FRAGMENT, _TTL, _TCP_PROTOCOL, 0, *addresses)
            + _TCP.pack(*ports, *numbers, _TCP_HEADER_WORDS | _ACK, 0xFFFF, 0, 0)
            + message
        )
        padding = -size % 4
        whole = _PACKET.size + size + padding + 4
        microseconds = int(time * 1e6)
        head = _PACKET.pack(_PACKET_TYPE, whole, 0, microseconds >> 32, microseconds & 0xFFFFFFFF, size, size)
        return head + data + bytes(padding) + whole.to_bytes(4, "little")


def _is_capture(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, len(_MAGIC)) == _MAGIC
    finally:
        os.close(descriptor)
