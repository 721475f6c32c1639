"""When a certificate is renewed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

_DUE: Final = 2 / 3  # of the certificate's life
_SPREAD: Final = 1 / 30  # of its life: three days of ninety, so that what enrolled together does not renew together


def renewal_at(begins: datetime, ends: datetime, random: float = 0.0) -> datetime:
    """When a certificate that is valid from ``begins`` to ``ends`` is renewed: at two thirds of that or a little later.

    Args:
        begins: its notBefore.
        ends: its notAfter.
        random: how much later, in [0, 1); the same for as long as it is this certificate.
    """
    return begins + (ends - begins) * (_DUE + _SPREAD * random)
