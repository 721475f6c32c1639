"""Finding the persistent handle of a key by its Name."""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.loaded.objects import read_public
from tpm_mtls_relay.loaded.public_area import ECC, RSA
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, code_of, simple_command, tag_of
from tpm_mtls_relay.shortcuts.hashing import NAMES, digest_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.loaded.objects import Objects
    from tpm_mtls_relay.loaded.public_area import PublicArea
    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.shortcuts.caches import Answers

SEARCHED = 16
"""Persistent keys that are looked at; chips guarantee seven."""

ABSENT_FOR = 3600.0
"""Seconds for which a key that was not persistent is not searched for again."""

_HINT = b"persistent key "
_CAP_HANDLES, _FIRST_PERSISTENT = 1, 0x81000000  # part 2, 6.12 and 7.2
_NO_DA = 1 << 10  # TPMA_OBJECT: part 2, 8.3


def name_if_interchangeable(key: PublicArea) -> bytes:
    """The Name of ``key`` (part 1, 16) if a persistent key of this Name is as good; else empty.

    It must be an asymmetric, unrestricted signing key, and without protection against dictionary attacks: a key file
    may have another authorization value than the persistent key (TPM2_ObjectChangeAuth), and wrong ones would be
    counted.
    """
    name_algorithm = NAMES.get(key.name_algorithm)
    if name_algorithm is None or key.type not in {RSA, ECC} or not key.signs or key.is_restricted:
        return b""
    if not key.attributes & _NO_DA:
        return b""
    return key.name_algorithm.to_bytes(2, "big") + digest_of(name_algorithm, key.public)


class PersistentKeys:
    """What was found, in memory and, as hints for the next program, in the file of `Answers`.

    A hint is checked by asking the TPM, so a wrong one costs one command.
    """

    def __init__(self, below: Exchange, objects: Objects, answers: Answers) -> None:
        self._below = below
        self._objects = objects
        self._answers = answers
        self._found: dict[bytes, int | None] = {}

    def find(self, name: bytes) -> int | None:
        """The persistent handle of the key ``name``; none if it has none."""
        if name not in self._found:
            hint = self._hint(name)
            if hint is None or (hint and not self.holds(hint, name)):
                hint = self._search(name)
                self._remember(name, hint)
            self._found[name] = hint or None
        return self._found[name]

    def holds(self, handle: int, name: bytes) -> bool:
        """Whether the key ``name`` is at ``handle``, now."""
        key = read_public(self._below(simple_command(commands.READ_PUBLIC, handles=(handle,))))
        is_there = key is not None and key.name == name
        if not is_there:
            self._found.pop(name, None)
        return is_there

    def forget(self) -> None:
        """Persistent objects were removed or added."""
        self._found.clear()
        file = self._answers.file
        if file is not None:
            for key in [key for key in file.pairs if key.startswith(_HINT)]:
                file.drop(key)

    def _search(self, name: bytes) -> int:
        return next(
            (handle for handle in self._handles() if self._may_hold(handle, name) and self.holds(handle, name)), 0
        )

    def _may_hold(self, handle: int, name: bytes) -> bool:
        """Whether it is not known to hold another key, such as the program's storage root key."""
        known = self._objects.get(handle)
        return known is None or known.name == name

    def _handles(self) -> list[int]:
        numbers = (_CAP_HANDLES, _FIRST_PERSISTENT, SEARCHED)
        response = self._below(
            simple_command(commands.GET_CAPABILITY, b"".join(number.to_bytes(4, "big") for number in numbers))
        )
        if code_of(response) or tag_of(response) != NO_SESSIONS:
            return []
        reader = Reader(response, HEADER.size + 5)
        try:
            return [reader.number(4) for _ in range(min(reader.number(4), SEARCHED))]
        except UnreadableError:
            return []

    def _hint(self, name: bytes) -> int | None:
        """The handle that the file says; 0 where it says that there is none; none where it says nothing."""
        file = self._answers.file
        value = file.pairs.get(_HINT + name, b"") if file is not None else b""
        handle, since = int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big")
        if not value or (not handle and not 0 <= self._answers.now() - since <= ABSENT_FOR):
            return None
        return handle

    def _remember(self, name: bytes, handle: int) -> None:
        if self._answers.file is not None:
            since = int(self._answers.now()).to_bytes(8, "big")
            self._answers.file.put(_HINT + name, handle.to_bytes(4, "big") + since)
