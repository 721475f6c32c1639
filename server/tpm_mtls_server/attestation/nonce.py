"""Check 1: the nonce is one that this backend gave to this device, lately, and nobody has used it. Pure."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import EvidenceRefusedError

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True)
class IssuedNonce:
    """A nonce that this backend gave away, as the registry knows it.

    Attributes:
        value: the nonce.
        device: to whom it was given.
        expires: until when it is good.
        used: whether a quote with it came in before this one. A registry that forgets used nonces need not say so; but
            of two quotes that come in at the same time it must let one find the nonce used, or forgotten.
    """

    value: bytes
    device: str
    expires: datetime
    used: bool = False


def check_nonce(sent: bytes, issued: IssuedNonce | None, *, device: str, now: datetime) -> None:
    """Check 1: ``sent`` is good.

    1. It was given away by this backend, and is remembered.
    2. It was given to this device.
    3. No other quote came in with it.
    4. It has not expired.

    Args:
        sent: which the evidence says that it answers. That it does is check 5.
        issued: what the registry knows about it; none if nothing.
        device: the name in the TLS certificate.
        now: the time.

    Raises:
        EvidenceRefusedError: check 1.
    """
    if issued is None or not hmac.compare_digest(sent, issued.value):  # 1
        raise _refused("the quote answers a nonce that this backend never gave, or that was used before")
    if issued.device != device:  # 2
        raise _refused("the quote answers a nonce that was given to another device")
    if issued.used:  # 3
        raise _refused("the quote answers a nonce that was used before")
    if now > issued.expires:  # 4
        late = (now - issued.expires).total_seconds()
        raise _refused(f"the quote came too late: its nonce expired {late:.0f} seconds ago")


def _refused(message: str) -> EvidenceRefusedError:
    return EvidenceRefusedError(message, hint="ask for another nonce: tpm-mtls agent check", check=1)
