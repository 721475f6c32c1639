"""When duties are due: by a clock that a test moves, for days."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls_agent.duties.schedule import Duty, Pace, Schedule

ALL = list(Duty)
DAY = 86_400.0
HOUR = 3600.0

randoms = st.floats(0, 1, exclude_max=True)


def schedule(*duties: Duty, random: float = 0.5, pace: Pace | None = None, now: float = 0.0) -> Schedule:
    return Schedule(pace or Pace(), duties or ALL, now=now, random=lambda: random)


def done_now(plan: Schedule, now: float) -> list[Duty]:
    """Does all that is due."""
    found = []
    while (duty := plan.due(now)) is not None:
        plan.succeeded(duty, now)
        found.append(duty)
    return found


def test_at_the_start_everything_is_done_in_order_and_then_each_hour() -> None:
    plan = schedule()
    assert done_now(plan, 0) == [Duty.CHECK, Duty.REPORT, Duty.ATTEST, Duty.RENEW]
    assert plan.wait(0) == HOUR
    assert done_now(plan, HOUR - 1) == []
    assert done_now(plan, HOUR) == [Duty.CHECK, Duty.REPORT, Duty.ATTEST, Duty.RENEW]


def test_nothing_is_reported_before_it_was_checked() -> None:
    plan = schedule(Duty.REPORT, Duty.CHECK)
    assert plan.due(0) is Duty.CHECK
    assert schedule(Duty.REPORT).due(DAY) is None
    assert schedule(Duty.REPORT).wait(DAY) is None


def test_what_is_not_to_be_done_is_never_due() -> None:
    plan = schedule(Duty.CHECK)
    plan.plan(Duty.RENEW, 0)
    assert done_now(plan, 0) == [Duty.CHECK]
    assert (plan.has(Duty.CHECK), plan.has(Duty.RENEW)) == (True, False)


@given(randoms)
def test_an_interval_is_longer_or_shorter_by_a_tenth(random: float) -> None:
    plan = schedule(Duty.CHECK, random=random)
    plan.succeeded(Duty.CHECK, 0)
    assert 0.9 * HOUR <= (plan.wait(0) or 0) <= 1.1 * HOUR


@given(st.integers(1, 10_000), randoms)
def test_a_delay_is_between_a_minute_and_an_hour(failures: int, random: float) -> None:
    assert 60 <= Pace().delay(failures, random) <= HOUR


@given(randoms)
def test_delays_grow(random: float) -> None:
    delays = [Pace().delay(failures, random) for failures in range(1, 12)]
    assert all(one <= other for one, other in pairwise(delays))
    assert delays[0] <= 90
    assert delays[-1] >= 2 * HOUR / 3


@given(randoms)
def test_a_backend_that_is_gone_for_three_days_is_asked_no_more_than_every_forty_minutes(random: float) -> None:
    plan, now, asked = schedule(random=random), 0.0, 0
    while now < 3 * DAY:
        while (duty := plan.due(now)) is not None:
            if duty in {Duty.REPORT, Duty.ATTEST}:
                plan.failed(duty, now)
                asked += 1
            else:
                plan.succeeded(duty, now)
        wait = plan.wait(now)
        assert wait is not None
        assert wait > 0
        now += wait
    assert asked <= 3 * DAY / 2400 + 8


def test_where_the_backend_does_not_answer_to_one_duty_it_is_not_asked_for_the_other() -> None:
    plan = schedule(random=0)
    plan.succeeded(Duty.CHECK, 0)
    assert plan.failed(Duty.REPORT, 0) == 60
    assert done_now(plan, 59) == [Duty.RENEW]
    assert done_now(plan, 60) == [Duty.REPORT, Duty.ATTEST]


def test_a_duty_that_fails_by_itself_keeps_no_other_from_being_done() -> None:
    plan = schedule(random=0)
    plan.succeeded(Duty.CHECK, 0)
    plan.failed(Duty.ATTEST, 0, alone=True)
    assert done_now(plan, 0) == [Duty.REPORT, Duty.RENEW]


def test_another_check_brings_no_attempt_forward() -> None:
    plan = schedule(random=0)
    plan.succeeded(Duty.CHECK, 0)
    plan.failed(Duty.REPORT, 0)
    plan.plan(Duty.ATTEST, 10)
    plan.succeeded(Duty.CHECK, 10)
    assert plan.due(59) in {None, Duty.RENEW}


def test_success_forgets_the_failures() -> None:
    plan = schedule(random=0)
    plan.succeeded(Duty.CHECK, 0)
    assert [plan.failed(Duty.REPORT, now) for now in (0, 60, 180)] == [60, 120, 240]
    plan.succeeded(Duty.REPORT, 420)
    assert plan.failed(Duty.ATTEST, 420) == 60


def test_who_asks_gets_everything_now_whatever_failed() -> None:
    plan = schedule(random=0)
    plan.succeeded(Duty.CHECK, 0)
    for duty in (Duty.REPORT, Duty.ATTEST, Duty.RENEW):
        plan.failed(duty, 0)
    plan.all_now(1)
    assert done_now(plan, 1) == ALL


def test_a_renewal_is_not_repeated_at_once_however_due_it_seems() -> None:
    """By a clock that is months ahead every new certificate is due."""
    plan = schedule()
    done_now(plan, 0)
    plan.plan(Duty.RENEW, 0)
    assert plan.due(HOUR - 1) is None
    assert Duty.RENEW in done_now(plan, HOUR)


def test_a_short_interval_shortens_the_first_delays_only() -> None:
    pace = Pace(interval=1.0)
    assert 1 <= pace.delay(1, 0.9) <= 1.5
    assert pace.delay(100, 0) >= 2 * HOUR / 3
