"""The list of transient objects, as the program knows them."""

from __future__ import annotations

from tpm_mtls_relay.loaded.objects import is_transient
from tpm_mtls_relay.messages.reader import Reader
from tpm_mtls_relay.messages.responses import success
from tpm_mtls_relay.messages.wire import HEADER, NO_SESSIONS, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_CAP_HANDLES = 1  # part 2, 6.12
_LIMIT = 254  # TPM2_MAX_CAP_HANDLES: part 2, annex B


def with_virtual_handles(command: bytes, response: bytes, virtual: AbstractSet[int], hidden: AbstractSet[int]) -> bytes:
    """A successful response to TPM2_GetCapability; with the ``virtual`` handles, if it lists transient objects.

    Args:
        command: the command.
        response: the TPM's response.
        virtual: handles that the program has and the TPM does not know.
        hidden: the TPM's handles that the program knows under a virtual one.
    """
    asked = Reader(command, HEADER.size)
    if not virtual or tag_of(command) != NO_SESSIONS:
        return response
    capability, first, count = asked.number(4), asked.number(4), asked.number(4)
    if capability != _CAP_HANDLES or not is_transient(first):
        return response
    answer = Reader(response, HEADER.size)
    more = answer.number(1)
    answer.take(4)
    real = {answer.number(4) for _ in range(answer.number(4))}
    # the list must be complete up to its end: the program goes on after that
    seen = [handle for handle in virtual if handle >= first and (not more or handle <= max(real, default=0))]
    handles = sorted({*seen, *real.difference(hidden)})
    shown = handles[: min(count, _LIMIT)]
    more |= len(shown) < len(handles)
    numbers = (_CAP_HANDLES, len(shown), *shown)
    return success(bytes([more]) + b"".join(number.to_bytes(4, "big") for number in numbers))
