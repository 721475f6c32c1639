"""Known-bad TPM firmware: what a vendor and a version, as the TPM reports them, are known for. Pure.

Only faults that the reported version tells are here, with their makers' statements; a fault may be there without
being listed. AMD's firmware TPM, for one, is fixed by versions of the mainboard's firmware (AMD-SB-7011), and libtpms
reports one version whatever it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

Version: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class FirmwareFault:
    """A known fault of some versions.

    Attributes:
        name: its CVE number.
        vendor: TPM_PT_MANUFACTURER, without trailing blanks.
        versions: first bad version and first good one after it, each as far as it counts.
        effect: what it means for this device.
        source: who says so.
    """

    name: str
    vendor: str
    versions: tuple[tuple[Version, Version], ...]
    effect: str
    source: str

    def __str__(self) -> str:
        """For a person."""
        return f"{self.name}: {self.effect} ({self.source})"


def _exactly(*versions: Version) -> tuple[tuple[Version, Version], ...]:
    return tuple((each, (*each[:-1], each[-1] + 1)) for each in versions)


_NONCE_LEAK: Final = (
    "how long an ECDSA signature takes gives the key away (TPM-FAIL); update the firmware, then make new ECC keys"
)
_OUT_OF_BOUNDS: Final = (
    "a program that may send TPM commands can read beyond a buffer, or stop the TPM; update the firmware"
)

FAULTS: Final = (
    FirmwareFault(
        "CVE-2017-15361",
        "IFX",
        (((5, 0), (5, 62)), ((7, 0), (7, 62)), ((133, 0), (133, 33))),
        "its RSA keys can be computed from their public half (ROCA); update the firmware, then make new RSA keys, or "
        "use ECC keys",
        "Infineon, www.infineon.com/TPM-update; Microsoft ADV170012",
    ),
    FirmwareFault(
        "CVE-2019-16863",
        "STM",
        _exactly(
            *((71, minor) for minor in (0, 4, 12)),
            *((73, minor) for minor in (0, 4, 5, 8, 9)),
            *((74, minor) for minor in (0, 4, 5, 8, 9, 16)),
        ),
        _NONCE_LEAK,
        "STMicroelectronics, www.st.com/content/st_com/en/campaigns/tpm-update.html",
    ),
    FirmwareFault(
        "CVE-2019-11090",
        "INTC",
        (((3,), (3, 1, 65)), ((4,), (4, 0, 15)), ((11,), (11, 8, 65)), ((12,), (12, 0, 35))),
        _NONCE_LEAK,
        "Intel, INTEL-SA-00241",
    ),
    FirmwareFault(
        "CVE-2023-1017",
        "NTC",
        _exactly((1, 3, 0, 1), (1, 3, 1, 0), (1, 3, 2, 8)),
        "a program that may send TPM commands can stop the TPM until the machine is powered off; update the firmware",
        "Nuvoton SA-003; CERT/CC VU#782720",
    ),
    FirmwareFault(
        "CVE-2025-2884",
        "NTC",
        (((7, 2), (7, 2, 4, 1)),),
        _OUT_OF_BOUNDS,
        "Nuvoton SA-005; CERT/CC VU#282450; TCG VRT0009",
    ),
    FirmwareFault(
        "CVE-2025-2884",
        "IFX",
        (((7, 0), (7, 66)), ((7, 83), (7, 86)), ((15, 0), (15, 23))),
        _OUT_OF_BOUNDS,
        "CERT/CC VU#282450; TCG VRT0009",
    ),
)


def firmware_faults(vendor: str, firmware: str) -> tuple[FirmwareFault, ...]:
    """The known faults of ``firmware``.

    Args:
        vendor: as `tpm_mtls.tpm.TpmFacts` has it.
        firmware: the same; four decimal numbers with dots. Another form is of no known-bad version.
    """
    if not re.fullmatch(r"\d{1,10}(\.\d{1,10})*", firmware, re.ASCII):
        return ()
    version = tuple(map(int, firmware.split(".")))
    return tuple(
        fault
        for fault in FAULTS
        if fault.vendor == vendor.strip() and any(first <= version < fixed for first, fixed in fault.versions)
    )
