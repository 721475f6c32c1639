"""What the relay's trace says about commands, and their sum.

The relay writes one JSON object a line for each command (`tpm_mtls_relay.observers.reporter`), and nothing into it that
could be a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

SIGN = "Sign"

LINE_LIMIT = 4096
"""Bytes of a line: as many as a pipe takes in one piece (PIPE_BUF)."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that a command uses, makes or loads.

    Attributes:
        handle: hexadecimal.
        kind: such as ``ecc-p256``; may be empty.
        name: its Name, hexadecimal.
    """

    handle: str
    kind: str
    name: str


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One command that reached the TPM.

    Attributes:
        time: when it was sent, seconds since the epoch.
        seconds: how long the TPM took.
        pid: process number of the program.
        program: its name.
        code: TPM_CC.
        command: its name without TPM2_.
        response_code: 0 for success.
        handles: those that the command names, hexadecimal.
        sessions: how it is authorized: ``password``, ``hmac`` or ``policy``.
        keys: what is known of the keys at its handles.
        details: what it is about, such as ``scheme``, ``hash``, ``pcrs``, ``bytes``.
        command_bytes: the command's size.
        response_bytes: the response's size.
    """

    time: float
    seconds: float
    pid: int
    program: str
    code: int
    command: str
    response_code: int
    handles: list[str]
    sessions: list[str]
    keys: list[Key]
    details: dict[str, str | int]
    command_bytes: int
    response_bytes: int


def parse_record(line: bytes) -> Record | None:
    """The record that ``line`` is; none for anything that the relay did not write."""
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


@dataclass
class Sum:
    """Of one command.

    Attributes:
        count: how often it was sent.
        seconds: how long the TPM took for all of them.
        errors: how many the TPM refused.
    """

    count: int = 0
    seconds: float = 0.0
    errors: int = 0

    def add(self, record: Record) -> None:
        """One more."""
        self.count += 1
        self.seconds += record.seconds
        self.errors += record.response_code != 0


@dataclass
class Summary:
    """Of all commands.

    Attributes:
        total: of all.
        commands: by the commands' names, in the order in which they first came.
    """

    total: Sum = field(default_factory=Sum)
    commands: dict[str, Sum] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """One more command."""
        self.total.add(record)
        self.commands.setdefault(record.command, Sum()).add(record)

    @property
    def signatures(self) -> int:
        """How many TPM2_Sign there were."""
        return self.commands.get(SIGN, Sum()).count
