"""The layer that knows what is loaded, and leaves nothing behind."""

from __future__ import annotations

from tpm_mtls_relay import commands
from tpm_mtls_relay.errors import RelayError, UnreadableError
from tpm_mtls_relay.objects import Objects, is_session, is_transient
from tpm_mtls_relay.public_area import PublicArea
from tpm_mtls_relay.reader import Reader
from tpm_mtls_relay.wire import (
    HEADER,
    SESSIONS,
    code_of,
    handles_of,
    parameters_of,
    sessions_of,
    simple_command,
    tag_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.wire import Exchange

_MAKING = {  # their responses begin with the handle of something new
    commands.CREATE_PRIMARY,
    commands.LOAD,
    commands.HMAC_START,
    commands.CONTEXT_LOAD,
    commands.LOAD_EXTERNAL,
    commands.START_AUTH_SESSION,
    commands.HASH_SEQUENCE_START,
    commands.CREATE_LOADED,
}
_CONTINUE_SESSION = 1
_ENCRYPT = 1 << 6


class Tracking:
    """Passes commands on and reads what their responses say about objects and sessions."""

    def __init__(self, below: Exchange, objects: Objects | None = None) -> None:
        self._below = below
        self.objects = objects if objects is not None else Objects()

    def __call__(self, command: bytes) -> bytes:
        """The TPM's response."""
        response = self._below(command)
        if code_of(response) == 0:
            self._ended_sessions(command)
            try:
                self._learn(command, response)
            except UnreadableError:
                pass  # passed on as it is: the program must judge it
        return response

    def close(self) -> None:
        """Removes from the TPM what came through here and is still there; what fails is left to the TPM's owner."""
        for handle in sorted(self.objects.loaded):
            try:
                self._below(flush(handle))
            except RelayError:
                return
            finally:
                self.objects.forget(handle)

    def _learn(self, command: bytes, response: bytes) -> None:
        code = code_of(command)
        if code in _MAKING:
            self._learn_new(code, command, response)
        elif code == commands.READ_PUBLIC and not _is_encrypted(command):
            reader = _parameters(response, handles=0)
            self.objects.learn(handles_of(command)[0], PublicArea(reader.sized(), reader.sized()))
        elif code == commands.FLUSH_CONTEXT:
            self.objects.forget(Reader(command, HEADER.size).number(4))
        elif code in {commands.SEQUENCE_COMPLETE, commands.EVENT_SEQUENCE_COMPLETE}:
            self.objects.forget(handles_of(command)[-1])
        elif code == commands.CONTEXT_SAVE and is_session(handles_of(command)[0]):
            # saved, it is not loaded any more; but it still takes a slot, which FlushContext gives back
            return
        elif code == commands.EVICT_CONTROL:
            self.objects.forget_key(Reader(parameters_of(command)).number(4))

    def _learn_new(self, code: int, command: bytes, response: bytes) -> None:
        handle = Reader(response, HEADER.size).number(4)
        if is_session(handle) or is_transient(handle):
            self.objects.forget(handle)
            self.objects.loaded.add(handle)
        if code in {commands.LOAD, commands.LOAD_EXTERNAL}:
            sent = Reader(parameters_of(command))
            sent.sized()  # the private part
            public = sent.sized()
            if not _is_encrypted(command):
                self.objects.learn(handle, PublicArea(public, _parameters(response, handles=1).sized()))
        elif code == commands.CREATE_PRIMARY and not _is_encrypted(command):
            answer = _parameters(response, handles=1)
            public = answer.sized()
            answer.sized()  # creation data
            answer.sized()  # its hash
            answer.take(6)  # the ticket's tag and hierarchy
            answer.sized()
            self.objects.learn(handle, PublicArea(public, answer.sized()))
        elif code == commands.CREATE_LOADED:
            answer = _parameters(response, handles=1)
            answer.sized()  # the private part
            self.objects.learn(handle, PublicArea(answer.sized(), answer.sized()))

    def _ended_sessions(self, command: bytes) -> None:
        for handle, attributes in sessions_of(command):
            if is_session(handle) and not attributes & _CONTINUE_SESSION:
                self.objects.forget(handle)


def flush(handle: int) -> bytes:
    """The command TPM2_FlushContext."""
    return simple_command(commands.FLUSH_CONTEXT, handle.to_bytes(4, "big"))


def _parameters(response: bytes, *, handles: int) -> Reader:
    reader = Reader(response, HEADER.size + 4 * handles)
    if tag_of(response) == SESSIONS:
        reader.take(4)  # the size of the parameters
    return reader


def _is_encrypted(command: bytes) -> bool:
    return any(is_session(handle) and attributes & _ENCRYPT for handle, attributes in sessions_of(command))
