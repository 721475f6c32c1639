"""What is known of the keys and sessions that the program has in the TPM."""

from __future__ import annotations

from tpm_mtls_relay.commands import READ_PUBLIC
from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.public_area import PublicArea
from tpm_mtls_relay.reader import Reader
from tpm_mtls_relay.wire import NO_SESSIONS, code_of, simple_command, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.wire import Exchange

_HMAC_SESSION, _POLICY_SESSION, _TRANSIENT, _PERSISTENT = 0x02, 0x03, 0x80, 0x81


class Objects:
    """Keys by their handles; ``loaded`` are the handles that must be flushed at the end.

    Attributes:
        loaded: transient objects and sessions that came through this relay and are still there.
    """

    __slots__ = ("_keys", "loaded")

    def __init__(self) -> None:
        self._keys: dict[int, PublicArea] = {}
        self.loaded: set[int] = set()

    def learn(self, handle: int, key: PublicArea) -> None:
        """``key`` is at ``handle``."""
        self._keys[handle] = key

    def get(self, handle: int) -> PublicArea | None:
        """What is at ``handle``, if that is known."""
        return self._keys.get(handle)

    def forget(self, handle: int) -> None:
        """Nothing is at ``handle`` any more."""
        self._keys.pop(handle, None)
        self.loaded.discard(handle)

    def forget_key(self, handle: int) -> None:
        """What is known of ``handle`` may be wrong from now on."""
        self._keys.pop(handle, None)

    def keys(self) -> dict[int, PublicArea]:
        """All that is known, by handle."""
        return dict(self._keys)


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
    """The key at ``handle``; asks the TPM (TPM2_ReadPublic) when it is not known yet. None where there is no key."""
    known = objects.get(handle)
    if known is None and (is_transient(handle) or is_persistent(handle)):
        known = read_public(exchange(simple_command(READ_PUBLIC, handles=(handle,))))
        if known is not None:
            objects.learn(handle, known)
    return known


def read_public(response: bytes) -> PublicArea | None:
    """The key that a response of TPM2_ReadPublic without sessions describes; none where it says there is none."""
    if code_of(response) != 0 or tag_of(response) != NO_SESSIONS:
        return None
    reader = Reader(response, 10)
    try:
        return PublicArea(reader.sized(), reader.sized())
    except UnreadableError:
        return None
