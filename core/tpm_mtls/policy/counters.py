"""The counter that retires old signed policies: a policy of version N holds as long as the counter is not beyond N."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from tpm_mtls.errors import UsageError
from tpm_mtls.policy.document import PolicyNv

DEFAULT_COUNTER: Final = 0x01500100

_FIRST, _LAST = 0x01000000, 0x01FFFFFF
_SHA256: Final = 0x000B
_ATTRIBUTES: Final = 0x22060012
"""TPMA_NV: OWNERWRITE, TPM_NT_COUNTER, OWNERREAD, AUTHREAD, NO_DA, WRITTEN; as `tpm_mtls.tpm.counter` makes it."""
_SIZE: Final = 8


def not_beyond(index: int, version: int) -> PolicyNv:
    """The assertion that the counter at ``index`` is at most ``version``.

    Its Name is that of every such counter in every TPM: it has no authPolicy, and no data (part 1, 16; part 2, 13.6).
    """
    public = b"".join(
        number.to_bytes(size, "big")
        for number, size in ((index, 4), (_SHA256, 2), (_ATTRIBUTES, 4), (0, 2), (_SIZE, 2))
    )
    name = _SHA256.to_bytes(2, "big") + hashlib.sha256(public).digest()
    return PolicyNv(index=f"{index:#010x}", name=name.hex(), operand=version.to_bytes(_SIZE, "big").hex())


def parse_counter(text: str) -> int | None:
    """The NV index that ``text`` gives in hexadecimal; none for ``none``.

    Raises:
        UsageError: it is neither.
    """
    if text == "none":
        return None
    if not re.fullmatch(r"0[xX][0-9A-Fa-f]{8}", text) or not _FIRST <= int(text, 16) <= _LAST:
        raise UsageError(f"not an NV index: {text[:40]!r}", hint=f"like {DEFAULT_COUNTER:#010x}, or none")
    return int(text, 16)
