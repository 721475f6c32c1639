"""The time of a request is one budget, whatever it is spent on."""

from __future__ import annotations

import ssl

import pytest

from tpm_mtls_client.timing import Budget, Timeout, current_budget, spending, time_sockets


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_shrinks_and_ends() -> None:
    clock = Clock()
    budget = Budget(Timeout(connect=5, read=3, total=10), clock=clock)
    assert (budget.left(), budget.next_piece(), budget.is_spent()) == (10, 3, False)
    clock.now += 8
    assert (budget.left(), budget.next_piece(), budget.is_spent()) == (2, 2, False)
    clock.now += 2
    assert budget.is_spent()
    for spend in (budget.left, budget.next_piece, budget.connecting):
        with pytest.raises(TimeoutError):
            spend()


def test_connecting_is_a_part_that_ends_with_the_whole() -> None:
    clock = Clock()
    budget = Budget(Timeout(connect=5, read=3, total=7), clock=clock)
    assert budget.connecting().left() == 5
    clock.now += 4
    assert budget.connecting().left() == 3


def test_one_number_of_seconds_limits_all_parts() -> None:
    assert Timeout.within(2) == Timeout(connect=2, read=2, total=2)
    assert Timeout.within(60) == Timeout(connect=10, read=30, total=60)


def test_a_budget_counts_inside_its_block_only() -> None:
    budget = Budget(Timeout())
    with spending(budget):
        assert current_budget() is budget
    with pytest.raises(LookupError):
        current_budget()


def test_a_contexts_sockets_are_timed_once() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    time_sockets(context)
    timed = context.sslsocket_class
    assert issubclass(timed, ssl.SSLSocket)
    time_sockets(context)
    assert context.sslsocket_class is timed
    assert ssl.SSLContext.sslsocket_class is ssl.SSLSocket
