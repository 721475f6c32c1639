"""What a machine booted, as a verified quote showed it: PCR values, and the event log that explains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.attestation.quote_checks import BANK

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True)
class BootState:
    """What a machine booted.

    Attributes:
        pcrs: the signed PCR values, by bank and number.
        event_log: the event log (bytes), which replays to them; none if there was none.
        at: when it was shown.
    """

    pcrs: Mapping[str, Mapping[int, bytes]]
    event_log: bytes | None
    at: datetime

    @classmethod
    def of_hex(cls, pcrs: Mapping[str, Mapping[int, str]], event_log: bytes | None, *, at: datetime) -> BootState:
        """The one whose PCR values are these hexadecimal ones, from a registry."""
        values = {bank: {pcr: bytes.fromhex(value) for pcr, value in of.items()} for bank, of in pcrs.items()}
        return cls(values, event_log, at)

    def hex_pcrs(self) -> dict[str, dict[int, str]]:
        """The PCR values, hexadecimal, for a registry."""
        return {bank: {pcr: value.hex() for pcr, value in of.items()} for bank, of in self.pcrs.items()}

    @property
    def values(self) -> Mapping[int, bytes]:
        """The PCR values of the bank that every quote holds."""
        return self.pcrs.get(BANK, {})

    @property
    def recorded(self) -> str:
        """When it was shown, ISO 8601."""
        return self.at.strftime("%Y-%m-%dT%H:%M:%SZ")
