"""What is known of the keys and sessions that the program has in the TPM."""

from __future__ import annotations

from tpm_mtls_relay.errors import KeyGoneError, UnreadableError
from tpm_mtls_relay.loaded.public_area import PublicArea
from tpm_mtls_relay.messages.commands import READ_PUBLIC
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, code_of, handles_of, sessions_of, simple_command, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.loaded.ledger import Ledger
    from tpm_mtls_relay.messages.wire import Exchange

_HMAC_SESSION, _POLICY_SESSION, _TRANSIENT, _PERSISTENT = 0x02, 0x03, 0x80, 0x81


class Objects:
    """Keys by their handles, and what must be flushed at the end.

    Attributes:
        loaded: transient objects and sessions that came through this relay and are still there.
        gone: those that went with a connection which died, while the program still believes in them.
        doubtful: those that may have gone: the connection died, and the TPM has no resource manager.
    """

    __slots__ = ("_keys", "_ledger", "doubtful", "gone", "loaded")

    def __init__(self, ledger: Ledger | None = None) -> None:
        """``ledger`` is told what is loaded, and what is gone."""
        self._ledger = ledger
        self._keys: dict[int, PublicArea] = {}
        self.loaded: set[int] = set()
        self.gone: set[int] = set()
        self.doubtful: set[int] = set()

    def learn(self, handle: int, key: PublicArea) -> None:
        """``key`` is at ``handle``."""
        self._keys[handle] = key

    def get(self, handle: int) -> PublicArea | None:
        """What is at ``handle``, if that is known."""
        return self._keys.get(handle)

    def keys(self) -> dict[int, PublicArea]:
        """All that is known, by handle."""
        return dict(self._keys)

    def load(self, handle: int) -> None:
        """Something new is at the transient or session handle ``handle``, to be flushed at the end."""
        self.forget(handle)
        self.loaded.add(handle)
        if self._ledger is not None:
            self._ledger.loaded(handle)

    def forget(self, handle: int) -> None:
        """Nothing is at ``handle`` any more, or something else."""
        self._keys.pop(handle, None)
        if self._ledger is not None:
            self._ledger.gone(handle)
        for handles in (self.loaded, self.gone, self.doubtful):
            handles.discard(handle)

    def connection_lost(self, *, raw: bool) -> None:
        """A connection to the TPM died; ``raw``: its objects do not depend on it, but the TPM may have been reset."""
        if raw:
            self.doubtful |= self.loaded
        else:
            self.gone |= self.loaded
            self.loaded.clear()

    def require(self, command: bytes, exchange: Exchange) -> None:
        """Checks that what ``command`` uses is still what the program means.

        Raises:
            KeyGoneError: it is not there any more.
        """
        if not self.gone and not self.doubtful:
            return
        used = {*handles_of(command), *(handle for handle, _ in sessions_of(command))}
        for handle in used:
            self.require_handle(handle, exchange)

    def require_handle(self, handle: int, exchange: Exchange) -> None:
        """The same for one ``handle``."""
        if handle in self.doubtful:
            self._check(handle, exchange)
        if handle in self.gone:
            raise KeyGoneError("a key or session went with a connection to the TPM that died")

    def _check(self, handle: int, exchange: Exchange) -> None:
        known = self._keys.get(handle)
        # a session cannot be recognized; the TPM itself refuses it, if it is another one
        found = ask_public(handle, exchange) if known is not None else None
        self.doubtful.discard(handle)
        if known is not None and (found is None or found.name != known.name):
            self.forget(handle)
            self.gone.add(handle)


def is_session(handle: int) -> bool:
    """Whether it is the handle of an HMAC or policy session (part 2, 7.2)."""
    return handle >> 24 in {_HMAC_SESSION, _POLICY_SESSION}


def is_transient(handle: int) -> bool:
    """Whether it is the handle of a transient object."""
    return handle >> 24 == _TRANSIENT


def is_persistent(handle: int) -> bool:
    """Whether it is the handle of a persistent object."""
    return handle >> 24 == _PERSISTENT


def key_at(handle: int, objects: Objects, exchange: Exchange) -> PublicArea | None:
    """The key at ``handle``; asks the TPM when it is not known yet. None where there is no key."""
    known = objects.get(handle)
    if known is None and (is_transient(handle) or is_persistent(handle)):
        known = ask_public(handle, exchange)
        if known is not None:
            objects.learn(handle, known)
    return known


def ask_public(handle: int, exchange: Exchange) -> PublicArea | None:
    """The key at ``handle``, as TPM2_ReadPublic describes it; none where there is no key."""
    return read_public(exchange(simple_command(READ_PUBLIC, handles=(handle,))))


def read_public(response: bytes) -> PublicArea | None:
    """The key that a response of TPM2_ReadPublic without sessions describes; none where it says there is none."""
    if code_of(response) != 0 or tag_of(response) != NO_SESSIONS:
        return None
    reader = Reader(response, HEADER.size)
    try:
        return PublicArea(reader.sized(), reader.sized())
    except UnreadableError:
        return None
