"""The outermost layer: fewer TPM commands for the same result."""

from __future__ import annotations

import time

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.loaded.objects import is_persistent, is_session, is_transient
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, code_of, handles_of
from tpm_mtls_relay.shortcuts.aliases import Aliases
from tpm_mtls_relay.shortcuts.caches import Answers
from tpm_mtls_relay.shortcuts.handle_list import with_virtual_handles
from tpm_mtls_relay.shortcuts.hashing import SoftwareHashing
from tpm_mtls_relay.shortcuts.persistent_keys import PersistentKeys
from tpm_mtls_relay.shortcuts.repeats import RepeatedLoads
from tpm_mtls_relay.shortcuts.virtual_handles import VirtualHandles, refusal_where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpm_mtls_relay.loaded.objects import Objects
    from tpm_mtls_relay.messages.wire import Exchange

_MAKING_KEYS = {
    commands.LOAD,
    commands.LOAD_EXTERNAL,
    commands.CREATE_PRIMARY,
    commands.CREATE_LOADED,
    commands.CONTEXT_LOAD,
}
_MAKING = _MAKING_KEYS | {commands.HASH_SEQUENCE_START, commands.HMAC_START}
_RC_TICKET = 0x3E0  # third parameter: part 2, 6.6.3


class Shortcuts:
    """Answers in software what needs no TPM, and uses a persistent key in place of its loaded copy.

    What it does not know goes through. Digests are made in software only as long as the program knows a signing key,
    and every one it knows is unrestricted: a restricted key needs the TPM's ticket for its digest. Sequences, moreover,
    only while no session is open: it could be there to authorize them, which only the TPM can check.
    """

    def __init__(
        self,
        below: Exchange,
        objects: Objects,
        answers: Answers | None = None,
        *,
        handles: VirtualHandles | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins knowing nothing.

        Args:
            below: the next layer.
            objects: what `Tracking` knows.
            answers: where answers that cannot change are kept; in memory only if not given.
            handles: gives virtual handles.
            clock: seconds.
        """
        self._below = below
        self._objects = objects
        self._answers = answers if answers is not None else Answers()
        self._handles = handles if handles is not None else VirtualHandles(objects)
        self._hashing = SoftwareHashing(self._handles, algorithms=self._answers.algorithms)
        self._repeats = RepeatedLoads(below, objects, clock)
        self._aliases = Aliases(below, self._handles, PersistentKeys(below, objects, self._answers), clock)
        self._programs: set[int] = set()
        self._tickets_matter = False

    def __call__(self, command: bytes) -> bytes:
        """The response to ``command``."""
        response = self._in_software(command)
        if response is None:
            self._repeats.prepare(command)
            response = self._with_aliases(command) or self._pass_on(command)
        return response

    @property
    def unsettled(self) -> bool:
        """Whether the TPM still has something that the program has unloaded: call `settle` when no command comes."""
        return self._repeats.keeps

    def settle(self) -> None:
        """Brings the TPM into the state that the program takes it to be in."""
        self._repeats.settle()

    def _in_software(self, command: bytes) -> bytes | None:
        code = code_of(command)
        if code in {commands.HASH, commands.HASH_SEQUENCE_START}:
            return self._hashing.begin(command) if self._may_hash(code) else None
        return self._answers.answer(command) or self._hashing.go_on(command) or self._repeats.answer(command)

    def _with_aliases(self, command: bytes) -> bytes | None:
        refusal = refusal_where(command, self._is_unknown)
        return refusal or self._aliases.load(command) or self._aliases.use(command)

    def _is_unknown(self, handle: int) -> bool:
        """Whether it was a virtual handle, or is a sequence's, which was asked already."""
        return self._handles.has_ended(handle) or (handle in self._handles and handle not in self._aliases)

    def _may_hash(self, code: int) -> bool:
        keys = [self._objects.get(handle) for handle in self._programs] + self._aliases.keys()
        if self._tickets_matter or None in keys:
            return False
        if code == commands.HASH_SEQUENCE_START and any(map(is_session, self._objects.loaded)):
            return False
        signing = [key for key in keys if key is not None and key.signs]
        return bool(signing) and not any(key.is_restricted for key in signing)

    def _pass_on(self, command: bytes) -> bytes:
        response = self._below(command)
        self._answers.learn(command, response)
        try:
            self._repeats.learn(command, response)
            return self._noted(command, response)
        except UnreadableError:
            return response  # the TPM's: the program must judge it

    def _noted(self, command: bytes, response: bytes) -> bytes:
        code = code_of(command)
        if code in {commands.SIGN, commands.READ_PUBLIC}:
            self._programs.update(filter(is_persistent, handles_of(command)))
            self._tickets_matter |= code == commands.SIGN and code_of(response) == _RC_TICKET
        if code_of(response):
            return response
        if code in _MAKING_KEYS and is_transient(handle := Reader(response, HEADER.size).number(4)):
            self._programs.add(handle)
        if code == commands.FLUSH_CONTEXT:
            self._programs.discard(Reader(command, HEADER.size).number(4))
        if code == commands.EVICT_CONTROL:
            self._aliases.doubt()
        if code in _MAKING:
            return self._aliases.rename(response, self._objects)
        if code == commands.GET_CAPABILITY:
            return with_virtual_handles(command, response, frozenset(self._handles), self._aliases.hidden())
        return response
