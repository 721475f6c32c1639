"""TPM commands as bytes, one by one, and a TPM that answers them: what libtss2 would send, and what it would not."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, code_of, simple_command, tag_of

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

SHA1, SHA256, SHA384, SHA512 = 0x0004, 0x000B, 0x000C, 0x000D
OWNER, NULL, ENDORSEMENT, PLATFORM = 0x40000001, 0x40000007, 0x4000000B, 0x4000000C
ECDSA, RSASSA, RSAPSS = 0x0018, 0x0014, 0x0016
NULL_TICKET = bytes.fromhex("8024400000070000")
SRK = 0x81000001
_PASSWORD = 0x40000009


class DirectTpm:
    """The TPM itself; connects anew for each command, as libtss2 does, so that tpm2-tools get a turn."""

    def __init__(self, tpm: SimulatedTpm) -> None:
        self._port = int(tpm.tcti.rpartition("=")[2])

    def __call__(self, command: bytes) -> bytes:
        """The TPM's response."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as tpm, tpm.makefile("rb") as answers:
            tpm.sendall(command)
            header = answers.read(HEADER.size)
            return header + answers.read(HEADER.unpack(header)[1] - HEADER.size)


def with_password(
    code: int, parameters: bytes = b"", *, handles: tuple[int, ...], password: bytes = b"", session: int = _PASSWORD
) -> bytes:
    """A command with a password session, or another one, for its first handle."""
    area = struct.pack(">IHBH", session, 0, 0, len(password)) + password
    body = b"".join(handle.to_bytes(4, "big") for handle in handles) + len(area).to_bytes(4, "big") + area + parameters
    return HEADER.pack(SESSIONS, HEADER.size + len(body), code) + body


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return len(data).to_bytes(2, "big") + data


def get_capability(capability: int, first: int, count: int) -> bytes:
    """TPM2_GetCapability."""
    return simple_command(commands.GET_CAPABILITY, struct.pack(">III", capability, first, count))


def hash_command(data: bytes, algorithm: int = SHA256, hierarchy: int = OWNER) -> bytes:
    """TPM2_Hash."""
    return simple_command(commands.HASH, sized(data) + struct.pack(">HI", algorithm, hierarchy))


def start_sequence(algorithm: int = SHA256, authorization: bytes = b"") -> bytes:
    """TPM2_HashSequenceStart."""
    return simple_command(commands.HASH_SEQUENCE_START, sized(authorization) + algorithm.to_bytes(2, "big"))


def update_sequence(handle: int, data: bytes, password: bytes = b"") -> bytes:
    """TPM2_SequenceUpdate."""
    return with_password(commands.SEQUENCE_UPDATE, sized(data), handles=(handle,), password=password)


def complete_sequence(handle: int, data: bytes = b"", hierarchy: int = OWNER) -> bytes:
    """TPM2_SequenceComplete."""
    parameters = sized(data) + hierarchy.to_bytes(4, "big")
    return with_password(commands.SEQUENCE_COMPLETE, parameters, handles=(handle,))


def flush(handle: int) -> bytes:
    """TPM2_FlushContext."""
    return simple_command(commands.FLUSH_CONTEXT, handle.to_bytes(4, "big"))


def read_public(handle: int) -> bytes:
    """TPM2_ReadPublic."""
    return simple_command(commands.READ_PUBLIC, handles=(handle,))


def load(folder: Path, name: str, *, parent: int = SRK, password: bytes = b"") -> bytes:
    """TPM2_Load of the blobs that `support.tpm_keys.make_key` left in ``folder``."""
    blobs = (folder / f"{name}.priv").read_bytes() + (folder / f"{name}.pub").read_bytes()
    return with_password(commands.LOAD, blobs, handles=(parent,), password=password)


def sign(handle: int, digest: bytes, scheme: int, *, ticket: bytes = NULL_TICKET, password: bytes = b"") -> bytes:
    """TPM2_Sign of a SHA-256 digest."""
    parameters = sized(digest) + struct.pack(">HH", scheme, SHA256) + ticket
    return with_password(commands.SIGN, parameters, handles=(handle,), password=password)


def handle_in(response: bytes) -> int:
    """The handle in a successful response."""
    assert code_of(response) == 0, hex(code_of(response))
    return Reader(response, HEADER.size).number(4)


def parameters_in(response: bytes, *, handles: int = 0) -> Reader:
    """The parameters of a successful response."""
    assert code_of(response) == 0, hex(code_of(response))
    reader = Reader(response, HEADER.size + 4 * handles)
    if tag_of(response) == NO_SESSIONS:
        return reader
    parameters = reader.sized_long()
    assert reader.rest() == bytes.fromhex("0000010000")  # the answer to a password
    return Reader(parameters)


def digest_in(response: bytes) -> bytes:
    """The digest that TPM2_Hash or TPM2_SequenceComplete gave."""
    return parameters_in(response).sized()


def handles_in(response: bytes) -> list[int]:
    """The handles that TPM2_GetCapability listed."""
    reader = parameters_in(response)
    reader.take(5)
    return [reader.number(4) for _ in range(reader.number(4))]
