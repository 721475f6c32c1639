"""Half-open enrollments: single use, a limited life, a limited number, a fair share of it, one's own only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls_pki.exchange import ExchangeStore


class Seconds:
    """A clock in seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Connection:
    """Stands for a TLS connection: only its identity counts."""


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def store(seconds: Seconds) -> ExchangeStore[str]:
    return ExchangeStore(seconds, lifetime=300, limit=4, budget=1000)


def test_an_exchange_is_found_once_by_its_ticket(store: ExchangeStore[str]) -> None:
    ticket = store.open("a", source="x", size=10)
    assert store.take(ticket) == "a"
    assert store.take(ticket) is None


def test_an_exchange_is_found_once_by_its_connection(store: ExchangeStore[str]) -> None:
    connection = Connection()
    ticket = store.open("a", source="x", size=10, connection=connection)
    assert store.take(None, connection=connection) == "a"
    assert store.take(None, connection=connection) is None
    assert store.take(ticket, connection=connection) is None


def test_an_exchange_taken_by_ticket_is_gone_for_its_connection_too(store: ExchangeStore[str]) -> None:
    connection = Connection()
    assert store.take(store.open("a", source="x", size=10, connection=connection)) == "a"
    assert store.take(None, connection=connection) is None


def test_nobody_else_finds_it(store: ExchangeStore[str]) -> None:
    connection = Connection()
    ticket = store.open("a", source="x", size=10, connection=connection)
    for wrong in ("", ticket[:-1], ticket + "A", ticket[:-1] + "\u00e9", "A" * 43, "\udcff" * 43):
        assert store.take(wrong, connection=connection) is None
    assert store.take(None, connection=Connection()) is None
    assert store.take(None) is None
    assert store.take(ticket) == "a"


def test_a_connection_finds_its_newest_and_tickets_find_each(store: ExchangeStore[str]) -> None:
    """A proxy carries many devices over one connection: they have their tickets."""
    connection = Connection()
    first = store.open("a", source="x", size=10, connection=connection)
    store.open("b", source="x", size=10, connection=connection)
    assert store.take(None, connection=connection) == "b"
    assert store.take(first) == "a"


def test_an_exchange_ends(store: ExchangeStore[str], seconds: Seconds) -> None:
    late, early = store.open("a", source="x", size=10), store.open("b", source="x", size=10)
    seconds.now += 299.9
    assert store.take(early) == "b"
    seconds.now += 0.1
    assert store.take(late) is None
    assert len(store) == 0


def test_a_sweep_forgets_what_has_ended(store: ExchangeStore[str], seconds: Seconds) -> None:
    store.open("a", source="x", size=10)
    seconds.now += 200
    store.open("b", source="x", size=10)
    seconds.now += 100
    store.sweep()
    assert len(store) == 1


def test_who_opens_many_pushes_out_its_own(store: ExchangeStore[str]) -> None:
    honest = store.open("honest", source="device", size=10)
    tickets = [store.open(f"flood-{number}", source="attacker", size=10) for number in range(100)]
    assert len(store) == 4
    assert store.take(honest) == "honest"
    assert [store.take(ticket) for ticket in tickets[-3:]] == ["flood-97", "flood-98", "flood-99"]
    assert {store.take(ticket) for ticket in tickets[:-3]} == {None}


def test_what_is_remembered_has_a_limit_in_bytes_too(store: ExchangeStore[str]) -> None:
    honest = store.open("honest", source="device", size=400)
    large = [store.open("large", source="attacker", size=300) for _ in range(3)]
    assert len(store) == 3
    assert [store.take(each) for each in (honest, *large)] == ["honest", None, "large", "large"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 400), st.sampled_from(["open", "take", "wait"])), max_size=60
    )
)
def test_whatever_happens_the_books_are_right(steps: list[tuple[str, int, str]]) -> None:
    seconds = Seconds()
    store: ExchangeStore[int] = ExchangeStore(seconds, lifetime=3, limit=5, budget=1000)
    tickets: list[tuple[str, int]] = []
    for source, size, step in steps:
        if step == "open":
            tickets.append((store.open(size, source=source, size=size), size))
        elif step == "take" and tickets:
            ticket, content = tickets.pop(size % len(tickets))
            assert store.take(ticket) in {None, content}
            assert store.take(ticket) is None
        else:
            seconds.now += 1
        assert len(store) <= 5
        assert store._bytes == sum(entry.size for entry in store._entries.values()) <= 1000
        assert sum(len(mine) for mine in store._by_source.values()) == len(store._entries)
