"""Check 1: a nonce is ours, this device's, fresh, and used once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support.judgements import DEVICE, LIFETIME, NOW
from support.quotes import NONCE
from tpm_mtls.errors import EvidenceRefusedError
from tpm_mtls_server.attestation.nonce import IssuedNonce, check_nonce

if TYPE_CHECKING:
    from datetime import datetime

ISSUED = IssuedNonce(NONCE, DEVICE, NOW + LIFETIME)


@pytest.mark.parametrize("now", [NOW, NOW + LIFETIME])
def test_a_nonce_is_good_for_its_lifetime(now: datetime) -> None:
    check_nonce(NONCE, ISSUED, device=DEVICE, now=now)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issued": None}, "never gave, or that was used before"),
        ({"sent": NONCE[:-1] + b"\0"}, "never gave"),
        ({"sent": NONCE[:12]}, "never gave"),
        ({"issued": replace(ISSUED, device="sensor-18")}, "given to another device"),
        ({"device": "sensor-18"}, "given to another device"),
        ({"issued": replace(ISSUED, used=True)}, "used before"),
        ({"now": NOW + LIFETIME + timedelta(seconds=3)}, "came too late: its nonce expired 3 seconds ago"),
    ],
)
def test_any_other_is_refused(changes: dict[str, Any], reason: str) -> None:
    arguments: dict[str, Any] = {"sent": NONCE, "issued": ISSUED, "device": DEVICE, "now": NOW} | changes
    with pytest.raises(EvidenceRefusedError, match=reason) as caught:
        check_nonce(arguments["sent"], arguments["issued"], device=arguments["device"], now=arguments["now"])
    assert caught.value.check == 1
