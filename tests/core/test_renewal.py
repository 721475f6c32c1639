"""When a certificate is renewed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.renewal import renewal_at

BEGINS = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 3650))
def test_it_is_renewed_at_two_thirds_of_its_life_or_a_little_later(random: float, days: int) -> None:
    life = timedelta(days=days)
    at = renewal_at(BEGINS, BEGINS + life, random)
    assert life * 2 / 3 - timedelta(seconds=1) <= at - BEGINS <= life * 0.7 + timedelta(seconds=1)


def test_devices_that_enrolled_together_do_not_renew_together() -> None:
    ends = BEGINS + timedelta(days=90)
    assert renewal_at(BEGINS, ends, 0.0) == BEGINS + timedelta(days=60)
    assert renewal_at(BEGINS, ends, 0.5) == BEGINS + timedelta(days=61.5)
