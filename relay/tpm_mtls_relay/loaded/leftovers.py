"""Flushes what relays that were killed left in a TPM without resource manager.

The rules, for what the file of a dead relay (`ledger`) lists:

1. An object whose handle is known is flushed if its public area is (or begins) as recorded: the handle may have gone to
   somebody else's object since.
2. An object whose handle is not known (the relay died during the command) is flushed wherever its public area is found,
   unless a living relay has it. Somebody who uses a copy of the same key without a relay loses it, as by a reset.
3. A sequence object has no public area: it is flushed if there is one at its handle.
4. A session whose handle is known is flushed, unless a living relay has one at this handle.
5. A policy session whose handle is not known is flushed if it is as fresh as a new one (its policyDigest is zero),
   unless a living relay has it.

Where a living relay is just loading something, what is not known waits for the next relay.
"""

from __future__ import annotations

import os

from tpm_mtls_relay.errors import UnreadableError
from tpm_mtls_relay.loaded.ledger import OBJECT, SEQUENCE, SESSION, files, lock, records
from tpm_mtls_relay.messages.commands import FLUSH_CONTEXT, GET_CAPABILITY, POLICY_GET_DIGEST, READ_PUBLIC
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.wire import HEADER, code_of, simple_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.loaded.ledger import Record
    from tpm_mtls_relay.messages.wire import Exchange

_CAPABILITY_HANDLES = 1  # TPM_CAP_HANDLES, part 2, table 22
_HANDLE_LIMIT = 64
_FIRST_TRANSIENT = 0x80000000
_FIRST_LOADED_SESSION = 0x02000000  # TPM_HT_LOADED_SESSION; the handles in the answer tell HMAC and policy sessions
_POLICY_SESSION = 0x03
_RC_SEQUENCE = 0x103


def flush_leftovers(folder: str, tcti: str, exchange: Exchange) -> None:
    """Applies the rules to the files of dead relays, and removes them.

    Raises:
        RelayError: the TPM does not answer; the files stay for the next relay.
    """
    dead: dict[str, int] = {}
    living: list[Record] = []
    try:
        for path in files(folder, tcti):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # its relay has just ended
            if lock(descriptor):
                dead[path] = descriptor
            else:
                living += records(descriptor)
                os.close(descriptor)
        for path, descriptor in dead.items():
            if _flush(list(records(descriptor)), living, exchange):
                os.unlink(path)  # noqa: PTH108 - pathlib is slow to import
    finally:
        for descriptor in dead.values():
            os.close(descriptor)


def _flush(left: list[Record], living: list[Record], exchange: Exchange) -> bool:
    """Whether everything could be decided."""
    taken = {record.handle for record in living}
    decided = True
    for record in left:
        if record.handle:
            if record.handle not in taken and _is(record, record.handle, exchange):
                exchange(simple_command(FLUSH_CONTEXT, record.handle.to_bytes(4, "big")))
        elif 0 in taken:
            decided = False
        else:
            for handle in _candidates(record, exchange):
                if handle not in taken and _is(record, handle, exchange):
                    exchange(simple_command(FLUSH_CONTEXT, handle.to_bytes(4, "big")))
    return decided


def _is(record: Record, handle: int, exchange: Exchange) -> bool:
    """Whether what is at ``handle`` now is what was recorded."""
    if record.kind == SESSION:
        return bool(record.handle) or _is_fresh(handle, exchange)
    response = exchange(simple_command(READ_PUBLIC, handles=(handle,)))
    if record.kind == SEQUENCE:
        return code_of(response) == _RC_SEQUENCE
    if code_of(response) != 0 or not record.public:
        return False
    return Reader(response, HEADER.size).sized().startswith(record.public)


def _is_fresh(session: int, exchange: Exchange) -> bool:
    if session >> 24 != _POLICY_SESSION:
        return False
    response = exchange(simple_command(POLICY_GET_DIGEST, handles=(session,)))
    return code_of(response) == 0 and not any(Reader(response, HEADER.size).sized())


def _candidates(record: Record, exchange: Exchange) -> list[int]:
    if record.kind not in {OBJECT, SESSION}:
        return []
    first = _FIRST_TRANSIENT if record.kind == OBJECT else _FIRST_LOADED_SESSION
    wanted = b"".join(number.to_bytes(4, "big") for number in (_CAPABILITY_HANDLES, first, _HANDLE_LIMIT))
    response = exchange(simple_command(GET_CAPABILITY, wanted))
    if code_of(response) != 0:
        return []
    try:
        reader = Reader(response, HEADER.size + 5)  # after moreData and the capability
        return [reader.number(4) for _ in range(reader.number(4))]
    except UnreadableError:
        return []
