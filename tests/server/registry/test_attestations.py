"""Nonces and verdicts in the database: each nonce once, each verdict whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.judgements import OTHER_TPM, TPM
from tpm_mtls.attestation.messages import DeviceState
from tpm_mtls.errors import CredentialError
from tpm_mtls_server.database import Database
from tpm_mtls_server.peer import DevicePeer
from tpm_mtls_server.registry import Registry
from tpm_mtls_server.registry.attestations import NONCES, NOTED_AT_ONCE, NOTED_EVERY, Attestations, wants_quote
from tpm_mtls_server.registry.background import Findings, Seen, Shown
from tpm_mtls_server.registry.contacts import Contacts

if TYPE_CHECKING:
    from tpm_mtls_server.registry import DeviceRow

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
BY = "alice@example.com"
SHOWN = Shown("000b" + "22" * 32, b"attest", b"signature", {"sha256": {0: "00" * 32, 23: "11" * 32}})
SEEN = Seen({"sha256": {0: "00" * 32}}, b"an event log" * 100)
GOOD = Findings(trusted=True, check=None, pending=False, reason="", clock='{"at":1}', seen=SEEN)
BAD = Findings(trusted=False, check=9, pending=False, reason="PCR 0", differences=("PCR 0",), clock="{}", seen=SEEN)


def peer(name: str) -> DevicePeer:
    return DevicePeer(name, 17, b"", None, NOW, NOW + 90 * DAY, tpm=TPM, certificate=b"DER")


@pytest.fixture
def attestations(database: Database) -> Attestations:
    for name in ("a", "b"):
        Contacts(database).admit(peer(name), now=NOW)
    return Attestations(database)


def record(attestations: Attestations, findings: Findings, *, now: datetime = NOW) -> DeviceRow:
    device = attestations.record(attestations.background("a"), SHOWN, findings, lifetime=DAY, now=now)
    assert device is not None
    return device


def test_the_endorsement_key_of_a_genuine_quote_is_kept_until_the_tpm_is_released(
    attestations: Attestations, registry: Registry
) -> None:
    shown = replace(SHOWN, endorsement_key=b"EK")

    def kept(findings: Findings) -> bytes | None:
        attestations.record(attestations.background("a"), shown, findings, lifetime=DAY, now=NOW)
        device = registry.device("a")
        assert device is not None
        return device.endorsement_key

    assert kept(replace(BAD, check=2, clock=None)) is None
    assert kept(BAD) == b"EK", "what it booted was refused, and the quote is genuine"
    other = replace(peer("a"), tpm=OTHER_TPM)
    with pytest.raises(CredentialError, match="names another TPM"):
        Contacts(attestations._database).admit(other, now=NOW)
    registry.release("a", by=BY, now=NOW)
    found = registry.device("a")
    assert found is not None
    assert found.endorsement_key is None


# nonces


def test_a_nonce_is_taken_once_by_its_device(attestations: Attestations) -> None:
    nonce = attestations.give_nonce("a", now=NOW)
    foreign = attestations.take_nonce(nonce, "b")
    assert foreign is not None
    assert foreign.device == "a"
    taken = attestations.take_nonce(nonce, "a")
    assert taken is not None
    assert (taken.nonce, taken.device, taken.expires) == (nonce, "a", NOW + timedelta(minutes=5))
    assert attestations.take_nonce(nonce, "a") is None
    assert attestations.take_nonce(bytes(32), "a") is None


def test_of_many_who_take_a_nonce_at_once_one_gets_it(attestations: Attestations, url: str) -> None:
    nonce = attestations.give_nonce("a", now=NOW)
    databases = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda number: Attestations(databases[number % 4]).take_nonce(nonce, "a"), range(16)))
    assert len([each for each in taken if each is not None]) == 1
    for each in databases:
        each.close()


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 5)), max_size=20))
def test_nonces_behave_as_a_short_queue_for_each_device(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool, int]]
) -> None:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('db')}/server.db")
    Registry(database)
    for name in ("a", "b"):
        Contacts(database).admit(peer(name), now=NOW)
    attestations = Attestations(database)
    model: dict[str, list[bytes]] = {"a": [], "b": []}
    given_away: list[bytes] = [bytes(32)]
    for device, give, which in steps:
        if give:
            nonce = attestations.give_nonce(device, now=NOW)
            given_away.append(nonce)
            model[device] = [*model[device], nonce][-NONCES:]
        else:
            nonce = given_away[which % len(given_away)]
            taken = attestations.take_nonce(nonce, device)
            holder = next((name for name, nonces in model.items() if nonce in nonces), None)
            assert (None if taken is None else taken.device) == holder
            if holder == device:
                model[device].remove(nonce)
    database.close()


# verdicts


def test_a_verdict_is_kept_with_its_quote(attestations: Attestations, registry: Registry) -> None:
    device = record(attestations, replace(GOOD, learn=True))
    assert device == registry.device("a")
    assert (device.state(NOW), device.trusted_at, device.trusted_until) == (DeviceState.ATTESTED, NOW, NOW + DAY)
    assert device.state(NOW + DAY) is DeviceState.OUTDATED
    (quote,) = registry.quotes("a")
    assert (quote.attest, quote.signature, quote.pcrs) == (b"attest", b"signature", SHOWN.pcrs)
    baseline = registry.baseline("a")
    assert baseline is not None
    assert (baseline.pcrs, baseline.event_log, baseline.accepted_by) == (SEEN.pcrs, SEEN.event_log, "")
    background = attestations.background("a")
    assert (background.clock, background.baseline) == ('{"at":1}', baseline)


def test_a_bad_quote_ends_what_a_good_one_began(attestations: Attestations, registry: Registry) -> None:
    record(attestations, GOOD)
    device = record(attestations, BAD)
    assert device.state(NOW) is DeviceState.FAILING
    assert device.trusted_at == NOW, "when it last was good is still known"
    assert [quote.differences for quote in registry.quotes("a")] == [("PCR 0",), ()]
    assert record(attestations, replace(BAD, pending=True)).state(NOW) is DeviceState.PENDING


def test_a_replayed_quote_changes_nothing_but_the_history(attestations: Attestations, registry: Registry) -> None:
    before = record(attestations, GOOD)
    after = record(attestations, replace(BAD, check=1, clock=None, seen=None))
    assert after == before
    assert [quote.check for quote in registry.quotes("a")] == [1, None]


def test_a_quote_that_is_not_genuine_leaves_clock_and_observation(
    attestations: Attestations, registry: Registry
) -> None:
    record(attestations, GOOD)
    record(attestations, replace(BAD, check=3, clock=None, seen=None), now=NOW + DAY)
    assert attestations.background("a").clock == '{"at":1}'
    seen = registry.observation("a")
    assert seen is not None
    assert (seen.at, seen.event_log) == (NOW, SEEN.event_log)


@pytest.mark.parametrize("change", ["quote", "quarantine", "group", "baseline", "key", "policy"])
def test_what_was_judged_by_something_old_is_not_kept(
    attestations: Attestations, registry: Registry, change: str
) -> None:
    key = "000b" + "33" * 32
    registry.enroll_key("a", key, by=BY, now=NOW)
    record(attestations, GOOD)
    registry.groups.define("fleet", by=BY, now=NOW)
    before = attestations.background("a")
    match change:
        case "quote":
            record(attestations, GOOD)
        case "quarantine":
            registry.quarantine("a", reason="?", by=BY, now=NOW)
        case "group":
            registry.move("a", "fleet", by=BY, now=NOW)
        case "baseline":
            registry.approve("a", by=BY, now=NOW)
        case "key":
            registry.withdraw_key(key, by=BY, now=NOW)
        case _:
            registry.groups.define("default", pcrs=[1], by=BY, now=NOW)
    known = registry.quotes("a"), registry.device("a"), registry.audit()
    assert attestations.record(before, SHOWN, GOOD, lifetime=DAY, now=NOW) is None
    assert (registry.quotes("a"), registry.device("a"), registry.audit()) == known


def test_long_differences_are_cut(attestations: Attestations, registry: Registry) -> None:
    record(attestations, replace(BAD, differences=("x" * 2000,) * 100))
    (quote,) = registry.quotes("a")
    assert len(quote.differences) == 32


# what the audit log tells of it


def changes(registry: Registry) -> list[str]:
    """The changes of a's state in the audit log, the oldest first."""
    states = {each.value for each in DeviceState}
    return [row.event for row in reversed(registry.audit("a")) if row.event in states]


def test_that_a_device_begins_to_fail_is_told_even_if_it_has_just_become_attested(
    attestations: Attestations, registry: Registry
) -> None:
    for seconds, findings in enumerate((GOOD, BAD, BAD, GOOD)):
        record(attestations, findings, now=NOW + timedelta(seconds=seconds))
    assert changes(registry) == ["attested", "failing", "attested"]


def test_a_device_that_changes_all_the_time_does_not_fill_the_audit_log(
    attestations: Attestations, registry: Registry
) -> None:
    def flap(start: datetime) -> int:
        before = len(changes(registry))
        for number in range(2 * NOTED_AT_ONCE):
            record(attestations, (GOOD, BAD)[number % 2], now=start + timedelta(seconds=number))
        return len(changes(registry)) - before

    assert flap(NOW) == NOTED_AT_ONCE
    assert flap(NOW + NOTED_EVERY) == 1
    assert flap(NOW + DAY) == NOTED_AT_ONCE
    assert flap(NOW) == NOTED_AT_ONCE, "the clock was set back"


# whether a quote is wanted


def test_a_quote_is_wanted_until_one_passed_and_then_after_half_its_life(attestations: Attestations) -> None:
    assert wants_quote(attestations.background("a").device, NOW)
    device = record(attestations, GOOD)
    assert not wants_quote(device, NOW + DAY / 2 - timedelta(seconds=1))
    assert wants_quote(device, NOW + DAY / 2)
    assert wants_quote(record(attestations, BAD), NOW)


def test_a_health_report_is_kept_whole(attestations: Attestations, registry: Registry) -> None:
    assert attestations.report_health("a", '{"time":1}', now=NOW)
    device = registry.device("a")
    assert device is not None
    assert (device.health, device.health_at) == ('{"time":1}', NOW)
    record(attestations, GOOD)
    assert not attestations.report_health("a", '{"time":2}', now=NOW + timedelta(minutes=1))
