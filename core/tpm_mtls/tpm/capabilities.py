"""What a TPM says about itself: TPM2_GetCapability (TPM 2.0 Library part 3, 30.2) and TPM2_ReadClock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm2_pytss.constants import TPM2_CAP

from tpm_mtls.key_reference import PERSISTENT_FIRST
from tpm_mtls.tpm.values import TpmFacts

if TYPE_CHECKING:
    from tpm2_pytss.ESAPI import ESAPI

_HANDLES_AT_ONCE = 64
_MANUFACTURER = 0x105  # TPM_PT_MANUFACTURER: part 2, 6.13
_FIRMWARE_VERSIONS = (0x10B, 0x10C)  # TPM_PT_FIRMWARE_VERSION_1 and 2


def read_facts(context: ESAPI) -> TpmFacts:
    """Vendor, firmware and resetCount (two commands)."""
    _, data = context.get_capability(TPM2_CAP.TPM_PROPERTIES, _MANUFACTURER, 16)
    listed = data.data.tpmProperties
    values = {int(listed[i].property): int(listed[i].value) for i in range(int(listed.count))}
    versions = [values.get(part, 0) for part in _FIRMWARE_VERSIONS]
    return TpmFacts(
        vendor=values.get(_MANUFACTURER, 0).to_bytes(4, "big").rstrip(b"\0 ").decode("ascii", errors="replace"),
        firmware=".".join(f"{version >> 16}.{version & 0xFFFF}" for version in versions),
        reset_count=int(context.read_clock().clockInfo.resetCount),
    )


def read_persistent_handles(context: ESAPI) -> tuple[int, ...]:
    """All persistent handles in use (one command for each 64)."""
    found: list[int] = []
    more = True
    while more:
        first = found[-1] + 1 if found else PERSISTENT_FIRST
        more, data = context.get_capability(TPM2_CAP.HANDLES, first, _HANDLES_AT_ONCE)
        listed = data.data.handles
        found += [int(listed[i]) for i in range(int(listed.count))]
    return tuple(found)
