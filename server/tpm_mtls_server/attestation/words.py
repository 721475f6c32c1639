"""What attestation says, in words for whoever stands before the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpm_mtls.event_log.components import PCR_COMPONENTS, Component

if TYPE_CHECKING:
    from collections.abc import Iterable


def named_pcrs(pcrs: Iterable[int]) -> str:
    """``PCR 4 (boot loader)``, ``PCRs 4 (boot loader), 7 (Secure Boot)``."""
    numbers = sorted(set(pcrs))
    names = [f"{pcr} ({PCR_COMPONENTS.get(pcr, Component.OTHER)})" for pcr in numbers]
    return f"PCR{'s' if len(numbers) > 1 else ''} {', '.join(names)}"


def listed(parts: Iterable[str], *, limit: int) -> tuple[str, ...]:
    """The first of ``parts``, together no longer than ``limit`` characters; the last one says how many are missing."""
    found: list[str] = []
    every = list(parts)
    room = limit
    for part in every:
        if len(part) > room:
            return (*found, f"… and {len(every) - len(found)} more")
        room -= len(part)
        found.append(part)
    return tuple(found)
