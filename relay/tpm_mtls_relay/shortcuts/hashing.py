"""Digests in software, and what stands for TPM2_Hash and the hash sequences while they are made there.

A digest needs the TPM only for its ticket, by which the TPM tells a *restricted* key that it made the digest itself,
and that the data did not begin with TPM_GENERATED_VALUE (TPM 2.0 Library part 3 rev 1.59, 15.4 and 20.2). An
unrestricted key signs any digest, and takes a null ticket.
"""

from __future__ import annotations

import os

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import password_of, refused, sized, success, success_with_password
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, SESSIONS, code_of, parameters_of, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from tpm_mtls_relay.shortcuts.virtual_handles import VirtualHandles

    class Hash(Protocol):
        """What `new_hash` makes, as in hashlib."""

        def update(self, data: bytes, /) -> None:
            """Adds ``data``."""

        def digest(self) -> bytes:
            """The digest of all data."""

        def copy(self) -> Hash:
            """One that goes on from here by itself."""


NAMES = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""TPM_ALG_ID of the hash functions of TLS (TCG Algorithm Registry 1.34, table 3)."""

INPUT_LIMIT = 1024
"""Bytes of TPM2B_MAX_BUFFER, which every known TPM has (TPM_PT_INPUT_BUFFER), and libtss2 too."""

SEQUENCE_LIMIT = 256
"""Sequences at once; a program has one for each thread. A TPM has room for three."""

CONTEXT_LIMIT = 256
"""Saved copies of sequences; the oldest are forgotten first."""

_OWNER, _NULL, _ENDORSEMENT, _PLATFORM = 0x40000001, 0x40000007, 0x4000000B, 0x4000000C
_HIERARCHIES = {_OWNER, _NULL, _ENDORSEMENT, _PLATFORM}
_NULL_TICKET = bytes.fromhex("8024 40000007 0000")  # TPM_ST_HASHCHECK, TPM_RH_NULL, no digest: part 2, 10.7.6

_RC_SIZE = 0x095
_RC_AUTH_MISSING = 0x125
_RC_AUTH_UNAVAILABLE = 0x12F
_RC_PARAMETER_1_SIZE = 0x1D5
_RC_PARAMETER_1_INSUFFICIENT = 0x1DA
_RC_PARAMETER_2_INSUFFICIENT = 0x2DA
_RC_PARAMETER_2_VALUE = 0x2C4
_RC_OBJECT_MEMORY = 0x902
_RC_SESSION_1_BAD_AUTH = 0x9A2

_SEQUENCE_OBJECT = 0x80000001  # savedHandle of a sequence: part 2, 14.5


_FUNCTIONS: dict[str, Callable[[], Hash]] = {}


def new_hash(name: str) -> Hash:
    """Python's own implementation of ``sha1``, ``sha256``, ``sha384`` or ``sha512``.

    hashlib would bring OpenSSL along: 2 ms and 4 MB more at the start. Its modules' names differ between versions of
    Python, so it is the last resort.
    """
    if name not in _FUNCTIONS:
        _FUNCTIONS[name] = _find(name)
    return _FUNCTIONS[name]()


def digest_of(name: str, data: bytes) -> bytes:
    """The digest of ``data``."""
    function = new_hash(name)
    function.update(data)
    return function.digest()


def _find(name: str, modules: tuple[str, ...] = ("_sha1", "_sha2", "_sha256", "_sha512")) -> Callable[[], Hash]:
    for module in modules:
        try:
            found: Callable[[], Hash] = getattr(__import__(module), name)
        except (ImportError, AttributeError):
            continue
        return found
    import hashlib  # noqa: PLC0415 - slow

    return getattr(hashlib, name)  # type: ignore[no-any-return]  # its functions share no type


class SoftwareHashing:
    """Answers TPM2_Hash, and all commands of the sequences that it made itself.

    It expects the empty password for a sequence: whether the program uses sessions is for its caller to know.
    """

    def __init__(self, handles: VirtualHandles, *, algorithms: Callable[[], frozenset[int]]) -> None:
        """Begins without sequences.

        Args:
            handles: gives the sequences their handles.
            algorithms: the TPM's algorithms, TPM_ALG_ID; what it does not have is left to it to refuse.
        """
        self._handles = handles
        self._algorithms = algorithms
        self._sequences: dict[int, Hash] = {}
        self._contexts: dict[bytes, Hash] = {}

    def begin(self, command: bytes) -> bytes | None:
        """The response to a TPM2_Hash or TPM2_HashSequenceStart; none where the TPM must answer."""
        asked = _asked(command)
        if asked is None:
            return None
        data, algorithm, hierarchy = asked
        name = NAMES.get(algorithm)
        if name is None or algorithm not in self._algorithms() or hierarchy not in {_OWNER, _NULL}:
            return None
        if code_of(command) == commands.HASH:
            return success(sized(digest_of(name, data)) + _NULL_TICKET) if len(data) <= INPUT_LIMIT else None
        return None if data else self._add(new_hash(name))  # data: the sequence's authorization value

    def go_on(self, command: bytes) -> bytes | None:
        """The response to a command about one of its sequences; none for all others."""
        code = code_of(command)
        if code == commands.CONTEXT_LOAD:
            return self._load_context(command)
        handle = int.from_bytes(command[HEADER.size : HEADER.size + 4], "big")
        sequence = self._sequences.get(handle)
        if sequence is None:
            return None
        if code in {commands.SEQUENCE_UPDATE, commands.SEQUENCE_COMPLETE}:
            return self._use(command, handle, sequence)
        if code == commands.CONTEXT_SAVE:
            return self._save_context(sequence)
        return self._flush(handle) if code == commands.FLUSH_CONTEXT else None

    def _add(self, sequence: Hash) -> bytes:
        if len(self._sequences) >= SEQUENCE_LIMIT:
            return refused(_RC_OBJECT_MEMORY)
        handle = self._handles.new()
        self._sequences[handle] = sequence
        return success(handle.to_bytes(4, "big"))

    def _flush(self, handle: int) -> bytes:
        del self._sequences[handle]
        self._handles.release(handle)
        return success()

    def _use(self, command: bytes, handle: int, sequence: Hash) -> bytes:
        """TPM2_SequenceUpdate and TPM2_SequenceComplete: part 3, 17.4 and 17.5."""
        code, data = _data(command)
        if code:
            return refused(code)
        sequence.update(data)
        if code_of(command) == commands.SEQUENCE_UPDATE:
            return success_with_password()
        self._flush(handle)
        return success_with_password(sized(sequence.digest()) + _NULL_TICKET)

    def _save_context(self, sequence: Hash) -> bytes:
        """A context that only this connection can load again: its data is but a number to find the copy by."""
        blob = os.urandom(32)
        while len(self._contexts) >= CONTEXT_LIMIT:
            del self._contexts[next(iter(self._contexts))]
        self._contexts[blob] = sequence.copy()
        number = len(self._contexts).to_bytes(8, "big")
        return success(number + _SEQUENCE_OBJECT.to_bytes(4, "big") + _NULL.to_bytes(4, "big") + sized(blob))

    def _load_context(self, command: bytes) -> bytes | None:
        parameters = Reader(command, HEADER.size)
        try:
            parameters.take(16)
            saved = self._contexts.get(parameters.sized())
        except UnreadableError:
            return None
        return None if saved is None else self._add(saved.copy())


def _asked(command: bytes) -> tuple[bytes, int, int] | None:
    """Data (or authorization value), algorithm and hierarchy; none where the command is not a plain one."""
    if tag_of(command) != NO_SESSIONS:
        return None
    parameters = Reader(command, HEADER.size)
    try:
        data, algorithm = parameters.sized(), parameters.number(2)
        hierarchy = parameters.number(4) if code_of(command) == commands.HASH else _NULL
        parameters.end()
    except UnreadableError:
        return None
    return data, algorithm, hierarchy


def _data(command: bytes) -> tuple[int, bytes]:
    """The response code for what is wrong with the command, or 0, and the data; checked in the TPM's order."""
    wrong = _unauthorized(command)
    if wrong:
        return wrong, b""
    parameters = Reader(parameters_of(command))
    too_short = _RC_PARAMETER_1_INSUFFICIENT
    try:
        size = parameters.number(2)
        if size > INPUT_LIMIT:
            return _RC_PARAMETER_1_SIZE, b""
        data = parameters.take(size)
        too_short = _RC_PARAMETER_2_INSUFFICIENT
        hierarchy = parameters.number(4) if code_of(command) == commands.SEQUENCE_COMPLETE else _NULL
    except UnreadableError:
        return too_short, b""
    if hierarchy not in _HIERARCHIES:
        return _RC_PARAMETER_2_VALUE, b""
    return 0 if parameters.at_end else _RC_SIZE, data


def _unauthorized(command: bytes) -> int:
    """The response code for a wrong authorization; 0 for the empty password, the sequences' own."""
    if tag_of(command) != SESSIONS:
        return _RC_AUTH_MISSING
    password = password_of(command)
    if password is None:
        return _RC_AUTH_UNAVAILABLE
    return _RC_SESSION_1_BAD_AUTH if password.rstrip(b"\0") else 0  # part 1, 19.4.2: trailing zeros do not count
