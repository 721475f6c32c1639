"""The layer that knows what is loaded, and leaves nothing behind."""

from __future__ import annotations

from tpm_mtls_relay.errors import KeyGoneError, RelayError, UnreadableError
from tpm_mtls_relay.loaded.loading import expected, is_encrypted, loaded_key, loads, response_parameters
from tpm_mtls_relay.loaded.objects import Objects, is_session, is_transient
from tpm_mtls_relay.loaded.public_area import PublicArea
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import (
    HEADER,
    NO_SESSIONS,
    code_of,
    handles_of,
    parameters_of,
    sessions_of,
    simple_command,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.loaded.ledger import Ledger
    from tpm_mtls_relay.messages.wire import Exchange

_CONTINUE_SESSION = 1  # TPMA_SESSION: the session is not ended by the command
_SUCCESS = HEADER.pack(NO_SESSIONS, HEADER.size, 0)


class Tracking:
    """Passes commands on, and reads in their responses what becomes of objects and sessions.

    Attributes:
        objects: what is known of them.
    """

    def __init__(self, below: Exchange, objects: Objects | None = None, ledger: Ledger | None = None) -> None:
        """``ledger`` is where the objects are written down, if the TPM has no resource manager."""
        self._below = below
        self._ledger = ledger
        self.objects = objects if objects is not None else Objects(ledger)

    def __call__(self, command: bytes) -> bytes:
        """The TPM's response.

        Raises:
            KeyGoneError: the command uses something that is not in the TPM any more.
            MalformedCommandError: the command's handles are not there.
            TransportError: the TPM does not answer.
        """
        self.objects.require(command, self._below)
        if self._is_flush_of_gone(command):
            return _SUCCESS
        response = self._load(command) if loads(command) else self._below(command)
        if code_of(response) == 0:
            for handle, attributes in sessions_of(command):
                if is_session(handle) and not attributes & _CONTINUE_SESSION:
                    self.objects.forget(handle)
            try:
                self._learn(command, response)
            except UnreadableError:
                return response  # as it is: the program must judge it
        return response

    def close(self) -> None:
        """Removes from the TPM what came through here and is still there; a TPM that does not answer keeps it."""
        for handle in sorted(self.objects.loaded):
            try:
                self.objects.require_handle(handle, self._below)
                self._below(flush(handle))
            except KeyGoneError:
                continue
            except RelayError:
                return
            self.objects.forget(handle)
        if self._ledger is not None:
            self._ledger.close()

    def _is_flush_of_gone(self, command: bytes) -> bool:
        if code_of(command) != commands.FLUSH_CONTEXT or not self.objects.gone:
            return False
        handle = int.from_bytes(command[HEADER.size : HEADER.size + 4], "big")
        gone = handle in self.objects.gone
        self.objects.forget(handle)
        return gone

    def _load(self, command: bytes) -> bytes:
        if self._ledger is None:
            return self._below(command)
        try:
            self._ledger.expect(expected(command))
        except UnreadableError:
            return self._below(command)  # the TPM says what is wrong with it
        response = self._below(command)
        if code_of(response) != 0:
            self._ledger.refused()
        return response

    def _learn(self, command: bytes, response: bytes) -> None:
        code = code_of(command)
        if loads(command):
            handle = Reader(response, HEADER.size).number(4)
            if is_session(handle) or is_transient(handle):
                self.objects.load(handle)
            key = loaded_key(command, response)
            if key is not None:
                self.objects.learn(handle, key)
        elif code == commands.READ_PUBLIC and not is_encrypted(command):
            answer = response_parameters(response, handles=0)
            self.objects.learn(handles_of(command)[0], PublicArea(answer.sized(), answer.sized()))
        elif code == commands.FLUSH_CONTEXT:
            self.objects.forget(Reader(command, HEADER.size).number(4))
        elif code in {commands.SEQUENCE_COMPLETE, commands.EVENT_SEQUENCE_COMPLETE}:
            self.objects.forget(handles_of(command)[-1])
        elif code == commands.CONTEXT_SAVE and is_session(handles_of(command)[0]):
            self.objects.forget(handles_of(command)[0])  # it is the program's, which means to come back to it
        elif code == commands.EVICT_CONTROL:
            self.objects.forget(Reader(parameters_of(command)).number(4))


def flush(handle: int) -> bytes:
    """The command TPM2_FlushContext."""
    return simple_command(commands.FLUSH_CONTEXT, handle.to_bytes(4, "big"))
