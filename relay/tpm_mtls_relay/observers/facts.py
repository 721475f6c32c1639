"""What may be told about a command: nothing in it that could be a secret.

Told are handles, kinds and Names of keys, algorithms, sizes, PCRs and indexes. Never told are authorization areas,
sensitive areas, what is hashed, signed, encrypted, decrypted, sealed or unsealed, the content of NV indexes, random
numbers, HMACs, tickets, and whatever is in a command that is not known.
"""

from __future__ import annotations

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.loaded.key_kinds import algorithm_word, curve_word, kind_of_public, kind_of_signature
from tpm_mtls_relay.messages import commands
from tpm_mtls_relay.messages.command_names import ANSWERED_WITH_HANDLE, command_name
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, SESSIONS, code_of, parameters_of, sessions_of, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Details = dict[str, str | int]

ENCRYPTED_COMMAND = 1 << 5
ENCRYPTED_RESPONSE = 1 << 6
"""TPMA_SESSION (part 2, 8.4): the first parameter of the command or the response is encrypted."""

_RSA_DECRYPT = 0x159
_NV_READ_PUBLIC = 0x169
_ATTESTED = (0x148, 0x14A, 0x14C, 0x14D, 0x158, 0x184)  # Certify … NV_Certify: TPM2B_ATTEST, then the signature
_WITH_TEMPLATE = (
    commands.CREATE,
    commands.CREATE_PRIMARY,
    commands.CREATE_LOADED,
    commands.LOAD,
    commands.LOAD_EXTERNAL,
)
_PASSWORD = 0x40000009
_BANKS, _PCR_BYTES = 16, 4  # more than any TPM has: of what a program may write, a line of the trace must hold it
_SESSION_KINDS = {0x02: "hmac", 0x03: "policy"}
_SESSION_TYPES = {0: "hmac", 1: "policy", 3: "trial"}
_CAPABILITIES = (
    "algorithms",
    "handles",
    "commands",
    "pp-commands",
    "audit-commands",
    "pcrs",
    "tpm-properties",
    "pcr-properties",
    "ecc-curves",
    "auth-policies",
    "act",
)


class Answer:
    """A response, taken apart.

    Attributes:
        handle: the handle that it begins with, for a command that makes something.
        parameters: what follows; empty for a refusal.
    """

    __slots__ = ("handle", "parameters")

    def __init__(self, command: bytes, response: bytes) -> None:
        """Reads ``response`` to ``command``.

        Raises:
            UnreadableError: it is too short.
        """
        self.handle: int | None = None
        self.parameters = b""
        if code_of(response):
            return
        reader = Reader(response, HEADER.size)
        if code_of(command) in ANSWERED_WITH_HANDLE:
            self.handle = reader.number(4)
        self.parameters = reader.sized_long() if tag_of(response) == SESSIONS else reader.rest()


def session_words(command: bytes) -> list[str]:
    """How ``command`` is authorized: ``password``, ``hmac`` or ``policy`` for each of its sessions."""
    return [
        "password" if handle == _PASSWORD else _SESSION_KINDS.get(handle >> 24, f"{handle:#x}")
        for handle, _ in sessions_of(command)
    ]


def is_encrypted(command: bytes, direction: int) -> bool:
    """Whether one of the sessions encrypts in that direction, `ENCRYPTED_COMMAND` or `ENCRYPTED_RESPONSE`."""
    return any(handle != _PASSWORD and attributes & direction for handle, attributes in sessions_of(command))


def key_kind(command: bytes, answer: Answer) -> str:
    """The kind of the key that ``command`` makes, loads or uses, such as ``ecc-p256``; empty where nothing says it.

    Raises:
        UnreadableError: the command or its answer is not what it says.
    """
    code = code_of(command)
    sent, got = Reader(parameters_of(command)), Reader(answer.parameters)
    if code in _WITH_TEMPLATE:
        sent.sized()  # the sensitive or private part
        return kind_of_public(sent.sized())
    if code == _RSA_DECRYPT:
        return f"rsa-{8 * len(sent.sized())}"
    if code == commands.VERIFY_SIGNATURE:
        sent.sized()  # the digest
        return kind_of_signature(sent)[1]
    if got.at_end:
        return ""
    if code == commands.READ_PUBLIC:
        return "" if is_encrypted(command, ENCRYPTED_RESPONSE) else kind_of_public(got.sized())
    if code in _ATTESTED:
        got.sized()  # what is attested
    return kind_of_signature(got)[1] if code in {commands.SIGN, *_ATTESTED} else ""


def details(command: bytes, answer: Answer) -> Details:
    """What ``command`` is about, in words; empty where there is nothing to tell, or nothing is known.

    Raises:
        UnreadableError: the command or its answer is not what it says.
    """
    code = code_of(command)
    told = _TOLD.get(code)
    if told is None or (code == _NV_READ_PUBLIC and is_encrypted(command, ENCRYPTED_RESPONSE)):
        return {}
    return told(Reader(parameters_of(command)), Reader(answer.parameters))


def _signature(sent: Reader, got: Reader) -> Details:
    if not got.at_end:
        return {"scheme": kind_of_signature(got)[0]}
    sent.sized()  # the digest
    return _scheme(sent)


def _scheme(sent: Reader) -> Details:
    scheme = algorithm_word(sent.number(2))
    return {} if scheme == "null" else {"scheme": f"{scheme}-{algorithm_word(sent.number(2))}"}


def _attested(_: Reader, got: Reader) -> Details:
    if got.at_end:
        return {}
    got.sized()
    return {"scheme": kind_of_signature(got)[0]}


def _quote(sent: Reader, got: Reader) -> Details:
    sent.sized()  # qualifying data
    asked = _scheme(sent)
    return (_attested(sent, got) or asked) | {"pcrs": _pcr_selection(sent)}


def _verify(sent: Reader, _: Reader) -> Details:
    sent.sized()
    return {"scheme": kind_of_signature(sent)[0]}


def _hash(sent: Reader, _: Reader) -> Details:
    size = len(sent.sized())
    return {"hash": algorithm_word(sent.number(2)), "bytes": size}


def _sequence_start(sent: Reader, _: Reader) -> Details:
    sent.sized()  # authorization value
    return {"hash": algorithm_word(sent.number(2))}


def _data(sent: Reader, _: Reader) -> Details:
    return {"bytes": len(sent.sized())}


def _data_back(_: Reader, got: Reader) -> Details:
    return {} if got.at_end else {"bytes": len(got.sized())}


def _random(sent: Reader, _: Reader) -> Details:
    return {"bytes": sent.number(2)}


def _capability(sent: Reader, _: Reader) -> Details:
    capability, which = sent.number(4), sent.number(4)
    word = _CAPABILITIES[capability] if capability < len(_CAPABILITIES) else f"{capability:#x}"
    return {"capability": word, "from": f"{which:#x}", "count": sent.number(4)}


def _session(sent: Reader, _: Reader) -> Details:
    sent.sized()  # nonce
    sent.sized()  # salt
    kind = sent.number(1)
    if algorithm_word(sent.number(2)) != "null":  # the cipher for parameters
        sent.take(4)
    return {"session": _SESSION_TYPES.get(kind, f"{kind:#x}"), "hash": algorithm_word(sent.number(2))}


def _pcr_selection(sent: Reader) -> str:
    banks = []
    for _ in range(min(sent.number(4), _BANKS)):
        bank, bits = algorithm_word(sent.number(2)), int.from_bytes(sent.take(sent.number(1))[:_PCR_BYTES], "little")
        banks.append(f"{bank}:{','.join(str(index) for index in range(bits.bit_length()) if bits >> index & 1)}")
    return "+".join(banks)


def _pcrs(sent: Reader, _: Reader) -> Details:
    return {"pcrs": _pcr_selection(sent)}


def _policy_pcr(sent: Reader, got: Reader) -> Details:
    sent.sized()  # the digest that they must have; empty: the present one
    return _pcrs(sent, got)


def _flush(sent: Reader, _: Reader) -> Details:
    return {"flushed": f"{sent.number(4):#010x}"}


def _persistent(sent: Reader, _: Reader) -> Details:
    return {"persistent": f"{sent.number(4):#010x}"}


def _curve(sent: Reader, _: Reader) -> Details:
    return {"curve": curve_word(sent.number(2))}


def _nv_range(sent: Reader, _: Reader) -> Details:
    return {"bytes": sent.number(2), "offset": sent.number(2)}


def _nv_write(sent: Reader, _: Reader) -> Details:
    return {"bytes": len(sent.sized()), "offset": sent.number(2)}


def _nv_define(sent: Reader, _: Reader) -> Details:
    sent.sized()  # authorization value
    return _nv_public(Reader(sent.sized()))


def _nv_read_public(_: Reader, got: Reader) -> Details:
    return {} if got.at_end else _nv_public(Reader(got.sized()))


def _nv_public(area: Reader) -> Details:
    index = area.number(4)
    area.take(6)  # Name algorithm, attributes
    area.sized()  # policy
    return {"index": f"{index:#010x}", "bytes": area.number(2)}


def _policy_command(sent: Reader, _: Reader) -> Details:
    return {"only": command_name(sent.number(4))}


def _policy_or(sent: Reader, _: Reader) -> Details:
    return {"branches": sent.number(4)}


def _startup(sent: Reader, _: Reader) -> Details:
    return {"type": "state" if sent.number(2) else "clear"}


_TOLD: dict[int, Callable[[Reader, Reader], Details]] = {
    0x120: _persistent,
    0x12A: _nv_define,
    0x137: _nv_write,
    0x144: _startup,
    0x145: _startup,
    0x148: _attested,
    0x14A: _attested,
    0x14C: _attested,
    0x14D: _attested,
    0x14E: _nv_range,
    0x158: _quote,
    0x15B: _sequence_start,
    0x15C: _data,
    0x15D: _signature,
    0x15E: _data_back,
    0x165: _flush,
    _NV_READ_PUBLIC: _nv_read_public,
    0x16C: _policy_command,
    0x171: _policy_or,
    0x176: _session,
    0x177: _verify,
    0x178: _curve,
    0x17A: _capability,
    0x17B: _random,
    0x17D: _hash,
    0x17E: _pcrs,
    0x17F: _policy_pcr,
    0x184: _attested,
    0x186: _sequence_start,
}


def facts_of(command: bytes, response: bytes) -> tuple[Answer | None, str, Details]:
    """The answer, the kind of the key, and the details; as much of it as can be read."""
    answer, kind, told = None, "", {}
    try:
        answer = Answer(command, response)
        kind = key_kind(command, answer)
        told = details(command, answer)
    except UnreadableError:
        pass  # what is no command or no answer is told as far as it can be read; the program must judge it
    return answer, kind, told
