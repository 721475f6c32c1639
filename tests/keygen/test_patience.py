"""Trying again: how often, how long, and when not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import PeerUnreachableError, TokenRefusedError, TpmMtlsError
from tpm_mtls_keygen.patience import Later, Patience, next_delay, retry_after

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
GONE = PeerUnreachableError("nobody answers", hint="wait", host="ca.example")


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.told: list[float] = []

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds=seconds, monotonic=lambda: self.now, sleep=self.sleep, uniform=lambda: 0.0)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def waiting(self, _: TpmMtlsError, delay: float) -> None:
        self.told.append(delay)


def test_without_patience_there_is_one_attempt() -> None:
    clock = Clock()

    with pytest.raises(PeerUnreachableError, match="nobody answers"):
        clock.patience(0).start(waiting=clock.waiting).until_done(lambda: Later(GONE))

    assert clock.told == []


def test_delays_double_and_the_last_attempt_is_at_the_deadline() -> None:
    clock = Clock()

    with pytest.raises(PeerUnreachableError):
        clock.patience(5).start(waiting=clock.waiting).until_done(lambda: Later(GONE))

    assert clock.told == [0.5, 1.0, 2.0, 1.5]
    assert clock.now == 1005.0


def test_attempts_share_one_deadline() -> None:
    clock = Clock()
    attempts = clock.patience(4).start(waiting=clock.waiting)
    outcomes = iter([Later(GONE), Later(GONE), "first"])

    assert attempts.until_done(lambda: next(outcomes)) == "first"
    with pytest.raises(PeerUnreachableError):
        attempts.until_done(lambda: Later(GONE))

    assert clock.now == 1004.0


def test_who_wants_to_be_left_alone_for_longer_than_there_is_patience_is() -> None:
    clock = Clock()

    with pytest.raises(PeerUnreachableError):
        clock.patience(60).start(waiting=clock.waiting).until_done(lambda: Later(GONE, after=61))

    assert clock.told == []


def test_what_is_raised_is_not_tried_again() -> None:
    attempts = 0

    def refused() -> str:
        nonlocal attempts
        attempts += 1
        raise TokenRefusedError("no", hint="-", status=401)

    with pytest.raises(TokenRefusedError):
        Clock().patience(60).start(waiting=lambda *_: None).until_done(refused)
    assert attempts == 1


@given(failures=st.integers(1, 10_000), after=st.none() | st.floats(0, 86400), jitter=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_shorter_than_ordered_nor_longer_than_a_minute_more(
    failures: int, after: float | None, jitter: float
) -> None:
    delay = next_delay(failures, after, jitter)

    assert (after or 0) + 0.5 <= delay <= (after or 0) + 60


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("999999999999999999999", 86400.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("١٢", None),
        ("Sun, 22 Nov 2026 12:01:00 GMT", 60.0),
        ("Sun, 22 Nov 2026 12:01:00 -0000", 60.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("Sun, 22 Nov 2099 11:00:00 GMT", 86400.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_breaks_anything(header: str) -> None:
    seconds = retry_after(header, now=NOW)

    assert seconds is None or 0 <= seconds <= 86400
