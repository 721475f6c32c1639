"""Commands that load something: what it will be, and what it has become (TPM 2.0 Library part 3, rev 1.59)."""

from __future__ import annotations

from tpm_mtls_relay.loaded.ledger import OBJECT, SEQUENCE, SESSION, Record
from tpm_mtls_relay.loaded.objects import is_session
from tpm_mtls_relay.loaded.public_area import PublicArea, template
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, SESSIONS, code_of, parameters_of, sessions_of, tag_of

_KINDS = {
    commands.CREATE_PRIMARY: OBJECT,
    commands.LOAD: OBJECT,
    commands.HMAC_START: SEQUENCE,
    commands.CONTEXT_LOAD: OBJECT,
    commands.LOAD_EXTERNAL: OBJECT,
    commands.START_AUTH_SESSION: SESSION,
    commands.HASH_SEQUENCE_START: SEQUENCE,
    commands.CREATE_LOADED: OBJECT,
}

_ENCRYPT = 1 << 6  # TPMA_SESSION: the first parameter of the response is encrypted


def loads(command: bytes) -> bool:
    """Whether the response, if it is success, begins with the handle of something new."""
    return code_of(command) in _KINDS


def expected(command: bytes) -> Record:
    """What ``command``, which `loads`, is about to load.

    Raises:
        UnreadableError: the command is malformed.
    """
    code = code_of(command)
    public = b""
    if code in {commands.LOAD, commands.LOAD_EXTERNAL}:
        public = _second_parameter(command)
    elif code in {commands.CREATE_PRIMARY, commands.CREATE_LOADED}:
        public = template(_second_parameter(command))
    return Record(_KINDS[code], 0, public)


def loaded_key(command: bytes, response: bytes) -> PublicArea | None:
    """The key that ``command`` has loaded, if the successful ``response`` describes it.

    Raises:
        UnreadableError: command or response is malformed.
    """
    code = code_of(command)
    parameters = response_parameters(response, handles=1)
    if code in {commands.LOAD, commands.LOAD_EXTERNAL}:
        return None if is_encrypted(command) else PublicArea(_second_parameter(command), parameters.sized())
    if code == commands.CREATE_PRIMARY and not is_encrypted(command):
        public = parameters.sized()
        parameters.sized()  # creation data
        parameters.sized()  # its hash
        parameters.take(6)  # the ticket's tag and hierarchy
        parameters.sized()  # the ticket
        return PublicArea(public, parameters.sized())
    if code == commands.CREATE_LOADED:
        parameters.sized()  # the private part
        return PublicArea(parameters.sized(), parameters.sized())
    return None


def response_parameters(response: bytes, *, handles: int) -> Reader:
    """The parameters of ``response``, which has as many ``handles``."""
    reader = Reader(response, HEADER.size + 4 * handles)
    if tag_of(response) == SESSIONS:
        reader.take(4)  # the size of the parameters
    return reader


def is_encrypted(command: bytes) -> bool:
    """Whether the first parameter of its response is for the program alone."""
    return any(is_session(handle) and attributes & _ENCRYPT for handle, attributes in sessions_of(command))


def _second_parameter(command: bytes) -> bytes:
    parameters = Reader(parameters_of(command))
    parameters.sized()  # the private or sensitive part
    return parameters.sized()
