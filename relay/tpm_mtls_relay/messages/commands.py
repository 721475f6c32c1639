"""Command codes (TPM_CC, TPM 2.0 Library part 2 rev 1.59, table 12), and how many handles each command has.

The handles stand before the authorization area (part 3, the commands' tables).
"""

from __future__ import annotations

EVICT_CONTROL = 0x120
CREATE_PRIMARY = 0x131
SEQUENCE_COMPLETE = 0x13E
INCREMENTAL_SELF_TEST = 0x142
SELF_TEST = 0x143
STARTUP = 0x144
CERTIFY = 0x148
POLICY_NV = 0x149
NV_READ = 0x14E
CREATE = 0x153
LOAD = 0x157
HMAC_START = 0x15B
SEQUENCE_UPDATE = 0x15C
SIGN = 0x15D
CONTEXT_LOAD = 0x161
CONTEXT_SAVE = 0x162
FLUSH_CONTEXT = 0x165
LOAD_EXTERNAL = 0x167
NV_READ_PUBLIC = 0x169
POLICY_AUTHORIZE = 0x16A
POLICY_AUTH_VALUE = 0x16B
POLICY_OR = 0x171
READ_PUBLIC = 0x173
START_AUTH_SESSION = 0x176
VERIFY_SIGNATURE = 0x177
ECC_PARAMETERS = 0x178
GET_CAPABILITY = 0x17A
GET_RANDOM = 0x17B
HASH = 0x17D
PCR_READ = 0x17E
POLICY_PCR = 0x17F
POLICY_RESTART = 0x180
EVENT_SEQUENCE_COMPLETE = 0x185
HASH_SEQUENCE_START = 0x186
POLICY_GET_DIGEST = 0x189
CREATE_LOADED = 0x191

_FIRST = 0x11F
_HANDLES = (  # of the commands _FIRST, _FIRST + 1, …; "-": no such command
    "2212-1111111111121112222221111111"  # to 0x13F
    "10000002232223222221111111-1111-"  # to 0x15F
    "201110-01111111111111-2100000001"  # to 0x17F
    "101132011101110111311312111"
)


def handle_count(code: int) -> int | None:
    """How many handles the command ``code`` has; none where the TPM library's specification does not know it."""
    index = code - _FIRST
    if 0 <= index < len(_HANDLES) and _HANDLES[index] != "-":
        return int(_HANDLES[index])
    return None
