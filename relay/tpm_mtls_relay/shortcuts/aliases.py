"""A key file's key that is also persistent is used where it is persistent.

A program that takes only files loads a copy of the key: a slot of the three that a TPM has, lost when the program is
killed, and behind the kernel's resource manager swapped in and out around every command. Two keys with the same Name
are one key (TPM 2.0 Library part 1 rev 1.59, 16), so the load is answered with a virtual handle that stands for the
persistent one. Where that would make a difference, as for saving or evicting it, the key is loaded after all.
"""

from __future__ import annotations

from tpm_mtls_relay.errors import KeyGoneError, UnreadableError
from tpm_mtls_relay.loaded.public_area import PublicArea
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import password_of, sized, success, success_with_password
from tpm_mtls_relay.messages.wire import HEADER, code_of, handles_of, parameters_of
from tpm_mtls_relay.shortcuts.persistent_keys import name_if_interchangeable
from tpm_mtls_relay.shortcuts.repeats import flush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.loaded.objects import Objects
    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.shortcuts.persistent_keys import PersistentKeys
    from tpm_mtls_relay.shortcuts.virtual_handles import VirtualHandles

TRUST = 600.0
"""Seconds for which a persistent handle is taken to hold the same key: one TPM2_ReadPublic in ten minutes. TPM2_Sign
does not say which key has signed; one that somebody else put there would go unnoticed."""

_AS_PERSISTENT = {commands.SIGN, commands.READ_PUBLIC, commands.CERTIFY}
"""Commands for which it makes no difference."""

_ENDING = {commands.SEQUENCE_COMPLETE, commands.EVENT_SEQUENCE_COMPLETE}
_CLASS, _WARNING = 0x980, 0x900  # of response codes: bits 7, 8 and 11: part 2, 6.6.2
_RC_HANDLE = 0x8B  # without the handle's number, which is in bits 8 to 10: part 2, 6.6.3


class Alias:
    """What a virtual handle stands for.

    Attributes:
        real: the persistent handle; the TPM's transient one once the key had to be loaded.
        load: the program's TPM2_Load; none when it was sent.
        key: the key; none where that is not known.
        checked: when it was last seen at the persistent handle.
    """

    __slots__ = ("checked", "key", "load", "real")

    def __init__(self, real: int, *, load: bytes | None, key: PublicArea | None, checked: float) -> None:
        self.real = real
        self.load = load
        self.key = key
        self.checked = checked


class Aliases:
    """The virtual handles of keys, and the commands in which they occur."""

    def __init__(
        self, below: Exchange, handles: VirtualHandles, persistent: PersistentKeys, clock: Callable[[], float]
    ) -> None:
        self._below = below
        self._handles = handles
        self._persistent = persistent
        self._clock = clock
        self._aliases: dict[int, Alias] = {}

    def __contains__(self, handle: int) -> bool:
        """Whether it is a virtual handle of a key."""
        return handle in self._aliases

    def keys(self) -> list[PublicArea | None]:
        """The keys behind the virtual handles; none for one that is not known."""
        return [alias.key for alias in self._aliases.values()]

    def hidden(self) -> frozenset[int]:
        """The TPM's own handles of objects that the program knows by virtual ones."""
        return frozenset(alias.real for alias in self._aliases.values() if alias.load is None)

    def load(self, command: bytes) -> bytes | None:
        """The response to a TPM2_Load of a key that is persistent, too; none for every other command."""
        key = _loaded_key(command)
        handle = self._persistent.find(key.name) if key is not None else None
        if key is None or handle is None:
            return None
        virtual = self._handles.new()
        self._aliases[virtual] = Alias(handle, load=command, key=key, checked=self._clock())
        return success_with_password(sized(key.name), handle=virtual.to_bytes(4, "big"))

    def use(self, command: bytes) -> bytes | None:
        """The response to a command that names a virtual handle; none for every other command."""
        if not self._aliases:
            return None
        try:
            if code_of(command) == commands.FLUSH_CONTEXT:
                return self._flush(Reader(command, HEADER.size).number(4))
            handles = handles_of(command)
        except UnreadableError:
            return None
        if not any(handle in self._aliases for handle in handles):
            return None
        return self._translated(command, handles)

    def rename(self, response: bytes, objects: Objects) -> bytes:
        """The response of a command that made an object, when the TPM gave it a number that is in use here."""
        handle = Reader(response, HEADER.size).number(4)
        if handle not in self._handles:
            return response
        virtual = self._handles.new()
        self._aliases[virtual] = Alias(handle, load=None, key=objects.get(handle), checked=0.0)
        return response[: HEADER.size] + virtual.to_bytes(4, "big") + response[HEADER.size + 4 :]

    def doubt(self) -> None:
        """Persistent objects were removed or added: every alias is checked before it is used again."""
        self._persistent.forget()
        for alias in self._aliases.values():
            alias.checked = self._clock() - 2 * TRUST

    def _flush(self, virtual: int) -> bytes | None:
        alias = self._aliases.pop(virtual, None)
        if alias is None:
            return None
        self._handles.release(virtual)
        return success() if alias.load is not None else self._below(flush(alias.real))

    def _translated(self, command: bytes, handles: tuple[int, ...]) -> bytes:
        for alias in filter(None, map(self._aliases.get, handles)):
            if alias.load is not None and not (code_of(command) in _AS_PERSISTENT and self._is_there(alias)):
                failure = self._load(alias, alias.load)
                if failure:
                    return failure
        response = self._below(self._with_real_handles(command, handles))
        gone = self._missing(code_of(response), handles)
        if gone is not None and gone.load is not None:
            return self._load(gone, gone.load) or self._translated(command, handles)
        if code_of(response) == 0 and code_of(command) in _ENDING:
            self._aliases.pop(handles[-1], None)
            self._handles.release(handles[-1])
        return response

    def _with_real_handles(self, command: bytes, handles: tuple[int, ...]) -> bytes:
        real = [self._aliases[handle].real if handle in self._aliases else handle for handle in handles]
        area = b"".join(handle.to_bytes(4, "big") for handle in real)
        return command[: HEADER.size] + area + command[HEADER.size + len(area) :]

    def _is_there(self, alias: Alias) -> bool:
        if alias.key is None or self._clock() - alias.checked <= TRUST:
            return True
        alias.checked = self._clock()
        return self._persistent.holds(alias.real, alias.key.name)

    def _missing(self, code: int, handles: tuple[int, ...]) -> Alias | None:
        """The alias whose persistent key the TPM does not have any more, by the response code."""
        number = code >> 8
        return (
            self._aliases.get(handles[number - 1])
            if code & 0xFF == _RC_HANDLE and 1 <= number <= len(handles)
            else None
        )

    def _load(self, alias: Alias, load: bytes) -> bytes | None:
        """Loads the key after all; the response to give instead, where the TPM has no room or no time for it.

        Raises:
            KeyGoneError: it cannot be loaded.
        """
        response = self._below(load)
        code = code_of(response)
        if code == 0:
            alias.real, alias.load = Reader(response, HEADER.size).number(4), None
            return None
        if code >> 16 or code & _CLASS == _WARNING:
            return response
        raise KeyGoneError(f"the persistent key {alias.real:#x} is gone, and its file does not load: {code:#x}")


def _loaded_key(command: bytes) -> PublicArea | None:
    """The key that a TPM2_Load loads, if a persistent one may stand in for it."""
    if code_of(command) != commands.LOAD or password_of(command) is None:
        return None
    try:
        parameters = Reader(parameters_of(command))
        parameters.sized()  # the private part
        key = PublicArea(parameters.sized())
        parameters.end()
    except UnreadableError:
        return None
    key.name = name_if_interchangeable(key)
    return key if key.name else None
