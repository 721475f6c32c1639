"""Random programs of hash commands: for the relay and for a TPM, which must answer alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from support.tpm_commands import (
    NULL,
    OWNER,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    complete_sequence,
    digest_in,
    flush,
    handle_in,
    hash_command,
    start_sequence,
    update_sequence,
)
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, code_of, simple_command

if TYPE_CHECKING:
    from tpm_mtls_relay.messages.wire import Exchange

ROOM = 3  # objects in a TPM
_ALGORITHMS = (SHA1, SHA256, SHA384, SHA512)
_KINDS = (
    "hash",
    "start",
    "update",
    "update",
    "update",
    "complete",
    "flush",
    "copy",
    "wrong password",
    "too much",
    "no hierarchy",
)

Step = tuple[str, int, bytes, int]


def steps() -> st.SearchStrategy[list[Step]]:
    """Kind, which sequence or algorithm, data, hierarchy."""
    step = st.tuples(
        st.sampled_from(_KINDS), st.integers(0, 11), st.binary(max_size=1024), st.sampled_from((OWNER, NULL))
    )
    return st.lists(step, min_size=5, max_size=25)


class HashProgram:
    """Runs steps; a sequence is known by its number, since handles differ."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._open: list[int] = []

    def run(self, program: list[Step]) -> list[bytes | int]:
        """What came back, digest or response code, for each step; nothing stays open."""
        results = [self._run(*step) for step in program]
        results += [digest_in(self._exchange(complete_sequence(handle))) for handle in self._open]
        self._open.clear()
        return results

    def _run(self, kind: str, number: int, data: bytes, hierarchy: int) -> bytes | int:
        if kind == "hash":
            return digest_in(self._exchange(hash_command(data, _ALGORITHMS[number % 4], hierarchy)))
        if kind == "start":
            return self._start(start_sequence(_ALGORITHMS[number % 4]))
        if not self._open:
            return 0
        handle = self._open[number % len(self._open)]
        if kind == "copy":
            response = self._exchange(simple_command(commands.CONTEXT_SAVE, handles=(handle,)))
            context = Reader(response, HEADER.size).rest()
            return self._start(simple_command(commands.CONTEXT_LOAD, context))
        return self._use(kind, handle, data, hierarchy)

    def _start(self, command: bytes) -> int:
        if len(self._open) < ROOM:
            self._open.append(handle_in(self._exchange(command)))
        return 0

    def _use(self, kind: str, handle: int, data: bytes, hierarchy: int) -> bytes | int:
        if kind in {"complete", "flush"}:
            self._open.remove(handle)
        command = {
            "update": lambda: update_sequence(handle, data),
            "complete": lambda: complete_sequence(handle, data, hierarchy),
            "flush": lambda: flush(handle),
            "wrong password": lambda: update_sequence(handle, data, b"wrong"),
            "too much": lambda: update_sequence(handle, bytes(1025)),
            "no hierarchy": lambda: complete_sequence(handle, data, 0x40000002),
        }[kind]()
        response = self._exchange(command)
        return digest_in(response) if kind == "complete" else code_of(response)
