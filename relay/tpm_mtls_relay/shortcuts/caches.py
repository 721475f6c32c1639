"""Answers of the TPM that cannot change, kept: in memory, and for the next program in a file."""

from __future__ import annotations

import os
import time

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import sized
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, code_of, tag_of
from tpm_mtls_relay.shortcuts.hashing import digest_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FILE_LIMIT = 65536
"""Bytes of a file; a TPM's answers are 1,500."""

FILES = 16
"""How many TPMs are remembered; a machine has one, a developer's may have had many."""

MEMORY_LIMIT = 256
"""Answers in memory; the provider asks four different questions."""

LIFETIME = 24 * 3600.0
"""Seconds for which a file is believed: should a TPM ever change what it says here without changing what it says of its
firmware."""

_MAGIC = b"tpm-mtls relay, answers of a TPM, 1\n"
_PREFIX = "answers-"
_DIGEST_SIZE = 32

_ALGORITHMS, _COMMANDS, _PROPERTIES, _CURVES = 0, 2, 6, 8  # TPM_CAP: part 2, 6.12
_FIXED_PROPERTIES = range(0x100, 0x200)  # TPM_PT: part 2, 6.13; from 0x200 on they vary
_FIXED = {_ALGORITHMS, _COMMANDS, _PROPERTIES, _CURVES}
_CHANGING = {0x12F, 0x13F, 0x141}  # FieldUpgradeStart, SetAlgorithmSet, FieldUpgradeData


class AnswerFile:
    """What was learned about one TPM, as pairs of bytes; what cannot be read or written is forgotten."""

    def __init__(self, path: str, *, now: Callable[[], float] = time.time) -> None:
        """Reads ``path``, if it is there and not older than `LIFETIME`."""
        self._path = path
        self.pairs = _read(path, now())

    def put(self, key: bytes, value: bytes) -> None:
        """Adds a pair, or replaces one."""
        self.pairs[key] = value
        self._write()

    def drop(self, key: bytes) -> None:
        """Removes a pair."""
        if self.pairs.pop(key, None) is not None:
            self._write()

    def _write(self) -> None:
        content = b"".join(sized(key) + sized(value) for key, value in self.pairs.items())
        if len(content) > FILE_LIMIT - len(_MAGIC) - _DIGEST_SIZE:
            return
        temporary = f"{self._path}.{os.getpid()}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, _MAGIC + digest_of("sha256", content) + content)
            finally:
                os.close(descriptor)
            os.replace(temporary, self._path)  # noqa: PTH105 - pathlib is slow to import
        except OSError:
            return  # only slower


def _read(path: str, now: float) -> dict[bytes, bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        age = now - os.fstat(descriptor).st_mtime
        content = os.read(descriptor, FILE_LIMIT)
    except OSError:
        return {}
    finally:
        os.close(descriptor)
    body = content[len(_MAGIC) + _DIGEST_SIZE :]
    if not 0 <= age <= LIFETIME or content[: -len(body) or None] != _MAGIC + digest_of("sha256", body):
        return {}
    pairs: dict[bytes, bytes] = {}
    reader = Reader(body)
    try:
        while not reader.at_end:
            key = reader.sized()
            pairs[key] = reader.sized()
    except UnreadableError:
        return {}
    return pairs


class Answers:
    """Answers to TPM2_ECC_Parameters, and to TPM2_GetCapability for algorithms, commands, curves and fixed properties.

    They follow from the TPM's firmware. The fixed properties name it (maker, model, firmware version, date, sizes …):
    once the TPM itself has answered them, what was kept in a file for a TPM that gave the same bytes at the same place
    is true for this one too. The provider asks for them first, so a replaced TPM or firmware is noticed.

    Attributes:
        file: what is kept about this TPM; none before its fixed properties are known, or without a folder.
        now: seconds since the epoch.
    """

    def __init__(self, folder: str | None = None, tcti: str = "", *, now: Callable[[], float] = time.time) -> None:
        """Begins with nothing.

        Args:
            folder: a private folder for the files; none to keep nothing.
            tcti: where the TPM is.
            now: seconds since the epoch.
        """
        self._folder = folder
        self._tcti = tcti
        self.now = now
        self._memory: dict[bytes, bytes] = {}
        self._algorithms: frozenset[int] = frozenset()
        self.file: AnswerFile | None = None

    def answer(self, command: bytes) -> bytes | None:
        """The kept response to ``command``."""
        known = self._memory.get(command)
        if known is None and self.file is not None and _is_fixed(command) and command in self.file.pairs:
            known = self.file.pairs[command]
            self._keep(command, known)
        return known

    def learn(self, command: bytes, response: bytes) -> None:
        """``response`` is what the TPM answered."""
        if code_of(command) in _CHANGING:
            self._memory.clear()
            self._algorithms = frozenset()
            self.file = None
            return
        if not _is_fixed(command) or code_of(response) or tag_of(response) != NO_SESSIONS:
            return
        if _capability(command) == _PROPERTIES:
            complete = _describe_all(command, response)
            if complete is None:
                return
            if complete and self._folder is not None and self.file is None:
                self.file = self._open(response)
        elif self.file is not None:
            self.file.put(command, response)
        self._keep(command, response)

    def algorithms(self) -> frozenset[int]:
        """The algorithms that the program was told the TPM has; empty as long as it did not ask."""
        return self._algorithms

    def _keep(self, command: bytes, response: bytes) -> None:
        if len(self._memory) < MEMORY_LIMIT:
            self._memory[command] = response
        if _capability(command) == _ALGORITHMS:
            self._algorithms |= _algorithms_in(response)

    def _open(self, properties: bytes) -> AnswerFile:
        name = digest_of("sha256", properties + self._tcti.encode(errors="surrogateescape")).hex()[:32]
        path = f"{self._folder}/{_PREFIX}{name}"
        _make_room(str(self._folder), path)
        return AnswerFile(path, now=self.now)


def _is_fixed(command: bytes) -> bool:
    if tag_of(command) != NO_SESSIONS:
        return False
    return code_of(command) == commands.ECC_PARAMETERS or _capability(command) in _FIXED


def _capability(command: bytes) -> int | None:
    """Which capability a well-formed TPM2_GetCapability asks for."""
    if code_of(command) != commands.GET_CAPABILITY or len(command) != HEADER.size + 12:
        return None
    return Reader(command, HEADER.size).number(4)


def _describe_all(command: bytes, response: bytes) -> bool | None:
    """Whether the properties in ``response`` are all that are fixed; none where one among them is not."""
    reader = Reader(response, HEADER.size)
    try:
        more = reader.number(1)
        reader.take(4)
        properties = [(reader.number(4), reader.number(4))[0] for _ in range(reader.number(4))]
    except UnreadableError:
        return None
    if not all(each in _FIXED_PROPERTIES for each in properties):
        return None
    return not more and Reader(command, HEADER.size + 4).number(4) <= _FIXED_PROPERTIES.start


def _algorithms_in(response: bytes) -> frozenset[int]:
    """TPML_ALG_PROPERTY: part 2, 10.9.1."""
    reader = Reader(response, HEADER.size + 5)
    try:
        return frozenset((reader.number(2), reader.number(4))[0] for _ in range(reader.number(4)))
    except UnreadableError:
        return frozenset()


def _make_room(folder: str, path: str) -> None:
    """Removes what was learned of the TPM that was not met for the longest time, before one more is added."""
    try:
        files = [entry for entry in os.scandir(folder) if entry.name.startswith(_PREFIX)]
        if len(files) >= FILES and not any(entry.path == path for entry in files):
            os.unlink(min(files, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime).path)  # noqa: PTH108 - as above
    except OSError:
        return
