"""Commands and responses without what could be a secret: zeros stand in its place, and no size changes.

Masked are passwords in authorization areas, authorization values that commands set, the data of sealed objects and NV
indexes, random numbers, HMACs and what they are made of, what is hashed, what is encrypted or was decrypted, and
private parts that may come without encryption. A command that is not known is masked as a whole.
"""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.command_names import ANSWERED_WITH_HANDLE
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, SESSIONS, code_of, handles_of, tag_of

_SENSITIVE_CREATE = (commands.CREATE, commands.CREATE_PRIMARY, commands.CREATE_LOADED)
"""Begin with TPM2B_SENSITIVE_CREATE: authorization value and data, a TPM2B each, in a TPM2B."""

_COMMANDS = {  # TPM_CC: which of the TPM2Bs that the parameters begin with are masked
    0x129: (0,),  # HierarchyChangeAuth: the new authorization value
    0x12A: (0,),  # NV_DefineSpace: the authorization value
    0x136: (0,),  # NV_Extend: the data
    0x137: (0,),  # NV_Write: the data
    0x13B: (0,),  # NV_ChangeAuth: the new authorization value
    0x13C: (0,),  # PCR_Event: the data
    0x13E: (0,),  # SequenceComplete: the data
    0x146: (0,),  # StirRandom: the data
    0x149: (0,),  # PolicyNV: what the index is compared with
    0x150: (0,),  # ObjectChangeAuth: the new authorization value
    0x155: (0,),  # HMAC: the data
    0x156: (0, 2),  # Import: the key of the inner wrapping, and the private part that may lack it
    0x15B: (0,),  # HMAC_Start: the authorization value
    0x15C: (0,),  # SequenceUpdate: the data
    commands.LOAD_EXTERNAL: (0,),  # the private part, in the clear
    0x168: (0,),  # MakeCredential: the secret
    0x174: (0,),  # RSA_Encrypt: the message
    commands.HASH: (0,),  # the data
    0x183: (0,),  # PCR_SetAuthValue: the authorization value
    0x185: (0,),  # EventSequenceComplete: the data
    commands.HASH_SEQUENCE_START: (0,),  # the authorization value
    0x193: (0,),  # EncryptDecrypt2: the data
    0x195: (0,),  # AC_Send: the data
    0x199: (0,),  # ECC_Encrypt: the message
}

_RESPONSES = {
    0x147: (0,),  # ActivateCredential: the secret
    0x14B: (0, 1),  # Duplicate: the key of the inner wrapping, and the private part that may lack it
    0x14E: (0,),  # NV_Read: the data
    0x154: (0,),  # ECDH_ZGen: the shared point
    0x155: (0,),  # HMAC
    0x159: (0,),  # RSA_Decrypt: the message
    0x15E: (0,),  # Unseal: the data
    0x163: (0,),  # ECDH_KeyGen: the shared point
    0x17B: (0,),  # GetRandom
    0x184: (0,),  # NV_Certify: the data is in what is attested
    0x18D: (0, 1),  # ZGen_2Phase: the shared points
    0x13E: (0,),  # SequenceComplete: the HMAC, or the digest
    0x164: (0,),  # EncryptDecrypt: the data
    0x193: (0,),  # EncryptDecrypt2: the data
    0x19A: (0,),  # ECC_Decrypt: the message
}

_WITHOUT_LAYOUT = frozenset({0x164})
"""EncryptDecrypt: its data comes last in the command."""

_PASSWORD = 0x40000009


def masked_command(command: bytes) -> bytes:
    """``command`` with zeros in place of what could be a secret; the whole body where it cannot be read."""
    masked = bytearray(command)
    code = code_of(command)
    try:
        _check_known(code, besides=_WITHOUT_LAYOUT)
        reader = Reader(command, HEADER.size + 4 * len(handles_of(command)))
        if tag_of(command) == SESSIONS:
            _mask_passwords(reader, masked)
        if code in _SENSITIVE_CREATE:
            reader.take(2)
            _mask_sized(reader, masked, (0, 1))
        else:
            _mask_sized(reader, masked, _COMMANDS.get(code, ()))
    except UnreadableError:
        return command[: HEADER.size] + bytes(len(command) - HEADER.size)
    return bytes(masked)


def masked_response(command: bytes, response: bytes) -> bytes:
    """``response`` to ``command``, masked in the same way."""
    if code_of(response):
        return response
    masked = bytearray(response)
    code = code_of(command)
    try:
        _check_known(code)
        reader = Reader(response, HEADER.size)
        if code in ANSWERED_WITH_HANDLE:
            reader.take(4)
        if tag_of(response) == SESSIONS:
            reader.take(4)  # the size of the parameters
        _mask_sized(reader, masked, _RESPONSES.get(code, ()))
    except UnreadableError:
        return response[: HEADER.size] + bytes(len(response) - HEADER.size)
    return bytes(masked)


def _check_known(code: int, *, besides: frozenset[int] = frozenset()) -> None:
    if commands.handle_count(code) is None or code in besides:
        raise UnreadableError("a command without a known layout")


def _mask_passwords(reader: Reader, masked: bytearray) -> None:
    end = reader.number(4) + reader.offset
    while reader.offset < end:
        is_password = reader.number(4) == _PASSWORD
        reader.sized()  # nonce
        reader.take(1)  # attributes
        _mask_sized(reader, masked, (0,) if is_password else ())
        if not is_password:
            reader.sized()  # HMAC


def _mask_sized(reader: Reader, masked: bytearray, which: tuple[int, ...]) -> None:
    for index in range(max(which, default=-1) + 1):
        size = len(reader.sized())
        if index in which:
            masked[reader.offset - size : reader.offset] = bytes(size)
