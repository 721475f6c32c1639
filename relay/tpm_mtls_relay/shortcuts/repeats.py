"""A key that is loaded twice in a row.

OpenSSL offers a key file to one decoder after the other, and the provider's decoder for EC keys loads an RSA key too,
sees that it is none, and unloads it, before the one for RSA keys loads it again (tpm2-openssl 1.3,
tpm2_tss2_decoder_decode). Loading takes a chip up to 0.2 s.
"""

from __future__ import annotations

from tpm_mtls_relay.loaded.objects import is_persistent
from tpm_mtls_relay.loaded.public_area import RSA
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import success
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, code_of, handles_of, simple_command, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.loaded.objects import Objects
    from tpm_mtls_relay.messages.wire import Exchange

PATIENCE = 1.0
"""Seconds for which the parent's public area is taken to be the same."""


class RepeatedLoads:
    """Unloads an RSA key that was only loaded a little later: at the next command that is no load of the same key.

    It also answers TPM2_ReadPublic of a persistent key, the parent, when nothing but loads came in between.
    """

    def __init__(self, below: Exchange, objects: Objects, clock: Callable[[], float]) -> None:
        self._below = below
        self._objects = objects
        self._clock = clock
        self._loaded: tuple[int, bytes, bytes] | None = None  # handle, command, response of the load just before
        self._kept: tuple[int, bytes, bytes] | None = None  # the same, of the key that is to be unloaded
        self._parent: tuple[bytes, bytes, float] | None = None  # command, response and time of its TPM2_ReadPublic

    @property
    def keeps(self) -> bool:
        """Whether a key is in the TPM that the program has unloaded."""
        return self._kept is not None

    def answer(self, command: bytes) -> bytes | None:
        """The response to a repeated command, or to the unloading in between."""
        code = code_of(command)
        if code == commands.FLUSH_CONTEXT:
            return self._unload(command)
        if code == commands.LOAD and self._kept is not None and self._kept[1] == command:
            self._loaded, self._kept = self._kept, None
            return self._loaded[2]
        if self._parent is not None and self._parent[0] == command and self._clock() - self._parent[2] <= PATIENCE:
            return self._parent[1]
        return None

    def prepare(self, command: bytes) -> None:
        """The TPM is about to get ``command``: unloads what is to be unloaded."""
        self.settle()
        self._loaded = None
        if code_of(command) not in {commands.LOAD, commands.FLUSH_CONTEXT}:
            self._parent = None

    def learn(self, command: bytes, response: bytes) -> None:
        """``response`` is what the TPM answered."""
        code = code_of(command)
        if code_of(response):
            return
        if code == commands.READ_PUBLIC and tag_of(command) == NO_SESSIONS and is_persistent(handles_of(command)[0]):
            self._parent = (command, response, self._clock())
        elif code == commands.LOAD:
            handle = Reader(response, HEADER.size).number(4)
            key = self._objects.get(handle)
            if key is not None and key.type == RSA:
                self._loaded = (handle, command, response)

    def settle(self) -> None:
        """Unloads what is to be unloaded."""
        if self._kept is not None:
            handle = self._kept[0]
            self._kept = None
            self._below(flush(handle))

    def _unload(self, command: bytes) -> bytes | None:
        if self._loaded is None or command != flush(self._loaded[0]):
            return None
        self._kept, self._loaded = self._loaded, None
        return success()


def flush(handle: int) -> bytes:
    """The command TPM2_FlushContext."""
    return simple_command(commands.FLUSH_CONTEXT, handle.to_bytes(4, "big"))
