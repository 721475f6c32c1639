"""What single bits of a TPM's variable properties say: TPM 2.0 Library part 2 rev 1.59, 8.6 and 8.7."""

from __future__ import annotations

import enum
from typing import Final

PERMANENT: Final = 0x200
"""TPM_PT_PERMANENT: the property that is a `Permanent`; part 2 rev 1.59, 6.13."""

STARTUP_CLEAR: Final = 0x201
"""TPM_PT_STARTUP_CLEAR: the property that is a `StartupClear`; the same."""

WHY_IT_COUNTS: Final = "find out who tries, or whether power was lost without a TPM shutdown, which counts as one"
"""In a hint: why a TPM counts a wrong authorization value, though nobody may have given one.

Where one that counts was used, and the next start finds that no TPM2_Shutdown came before it, the TPM counts a failure:
it may have lost the count of one. Part 1 rev 1.59, 19.8.6.
"""


class Permanent(enum.IntFlag):
    """TPMA_PERMANENT: part 2 rev 1.59, 8.6."""

    OWNER_AUTH_SET = 1 << 0
    ENDORSEMENT_AUTH_SET = 1 << 1
    LOCKOUT_AUTH_SET = 1 << 2
    DISABLE_CLEAR = 1 << 8
    IN_LOCKOUT = 1 << 9


class StartupClear(enum.IntFlag):
    """TPMA_STARTUP_CLEAR: part 2 rev 1.59, 8.7: which hierarchies can be used until the next restart."""

    PLATFORM_ENABLED = 1 << 0  # phEnable
    OWNER_ENABLED = 1 << 1  # shEnable
    ENDORSEMENT_ENABLED = 1 << 2  # ehEnable
