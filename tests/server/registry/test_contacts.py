"""Devices as they come: taken in, recognised, refused; and how little of that is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from support.judgements import OTHER_TPM, TPM
from tpm_mtls.device_identity import TpmIdentity
from tpm_mtls.errors import CredentialError, StateError
from tpm_mtls_server.peer import DevicePeer
from tpm_mtls_server.registry.contacts import Contacts

if TYPE_CHECKING:
    from tpm_mtls_server.database import Database
    from tpm_mtls_server.registry import Registry

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PEER = DevicePeer(
    name="sensor-17",
    serial=17,
    issuer=b"",
    issuer_key=None,
    not_before=NOW,
    not_after=NOW + timedelta(days=90),
    tpm=TPM,
)
SOFT = replace(PEER, tpm=None)
OTHER = replace(PEER, tpm=OTHER_TPM)
BY = "alice@example.com"


@pytest.fixture
def contacts(database: Database) -> Contacts:
    return Contacts(database)


def writes(database: Database) -> list[str]:
    """The writing statements from now on, as they come."""
    found: list[str] = []

    @sqlalchemy.event.listens_for(database._engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE", "BEGIN IMMEDIATE")):
            found.append(statement)

    return found


def events(registry: Registry) -> list[str]:
    return [row.event for row in registry.audit("sensor-17")]


def test_a_new_device_is_taken_in(contacts: Contacts, registry: Registry) -> None:
    device = contacts.admit(PEER, now=NOW)
    assert device == registry.device("sensor-17")
    assert (device.group, device.tpm, device.serial) == ("default", str(TPM), f"{17:040x}")
    assert (device.first_seen, device.last_seen, device.not_after) == (NOW, NOW, PEER.not_after)
    assert (device.verdict, device.health, device.wanted) == (None, None, True)
    assert events(registry) == ["first-seen"]
    assert registry.device("sensor-18") is None


def test_last_seen_is_written_at_most_once_a_minute(contacts: Contacts, database: Database) -> None:
    contacts.admit(PEER, now=NOW)
    found = writes(database)
    for second in range(60):
        contacts.admit(PEER, now=NOW + timedelta(seconds=second))
        contacts.admit(replace(PEER, serial=18), now=NOW + timedelta(seconds=second))
    assert found == []
    device = contacts.admit(replace(PEER, serial=18), now=NOW + timedelta(seconds=60))
    assert (device.last_seen, device.serial) == (NOW + timedelta(seconds=60), f"{18:040x}")
    assert len([statement for statement in found if statement.startswith("UPDATE")]) == 1


def test_a_clock_that_was_set_back_does_not_stop_it(contacts: Contacts) -> None:
    contacts.admit(PEER, now=NOW)
    earlier = NOW - timedelta(days=1)
    assert contacts.admit(PEER, now=earlier).last_seen == earlier


@pytest.mark.parametrize(
    ("peer", "match"),
    [(SOFT, "was seen with a TPM, and its certificate names none"), (OTHER, "names another TPM than the device had")],
)
def test_a_device_that_is_not_what_it_was_is_refused_and_noted_once_a_day(
    contacts: Contacts, registry: Registry, database: Database, peer: DevicePeer, match: str
) -> None:
    contacts.admit(PEER, now=NOW)
    for hour in (0, 1, 23):
        with pytest.raises(CredentialError, match=match):
            contacts.admit(peer, now=NOW + timedelta(hours=hour))
    assert events(registry) == ["certificate-refused", "first-seen"]
    found = writes(database)
    with pytest.raises(CredentialError, match=match):
        contacts.admit(peer, now=NOW + timedelta(hours=23, minutes=59))
    assert found == []
    with pytest.raises(CredentialError, match=match):
        contacts.admit(peer, now=NOW + timedelta(hours=25))
    assert events(registry) == ["certificate-refused", "certificate-refused", "first-seen"]


def test_refusals_by_turns_do_not_flood_the_audit_log(contacts: Contacts, registry: Registry) -> None:
    contacts.admit(PEER, now=NOW)
    for second in range(50):
        with pytest.raises(CredentialError):
            contacts.admit(OTHER if second % 2 else SOFT, now=NOW + timedelta(seconds=second))
    assert events(registry) == ["certificate-refused", "first-seen"]


def test_software_may_become_a_tpm(contacts: Contacts, registry: Registry) -> None:
    assert contacts.admit(SOFT, now=NOW).tpm is None
    assert contacts.admit(SOFT, now=NOW).tpm is None
    device = contacts.admit(PEER, now=NOW)
    assert (device.tpm, device.revision) == (str(TPM), 1)
    assert events(registry) == ["tpm-seen", "first-seen"]
    with pytest.raises(CredentialError, match="names none"):
        contacts.admit(SOFT, now=NOW)


def test_a_release_takes_the_refused_tpm_and_no_third_one(contacts: Contacts, registry: Registry) -> None:
    contacts.admit(PEER, now=NOW)
    registry.enroll_key("sensor-17", "000b" + "11" * 32, by=BY, now=NOW)
    with pytest.raises(CredentialError):
        contacts.admit(OTHER, now=NOW)
    assert registry.release("sensor-17", by=BY, now=NOW).tpm == str(OTHER_TPM)
    assert registry.keys("sensor-17") == [], "it was the old TPM's"
    assert contacts.admit(OTHER, now=NOW).refused_tpm is None
    for peer in (PEER, SOFT, replace(PEER, tpm=TpmIdentity(b"x" * 32))):
        with pytest.raises(CredentialError):
            contacts.admit(peer, now=NOW)


def test_a_release_never_takes_a_device_without_its_tpm(contacts: Contacts, registry: Registry) -> None:
    contacts.admit(PEER, now=NOW)
    with pytest.raises(CredentialError):
        contacts.admit(SOFT, now=NOW)
    with pytest.raises(StateError, match="is not quarantined"):
        registry.release("sensor-17", by=BY, now=NOW)
    registry.quarantine("sensor-17", reason="?", by=BY, now=NOW)
    registry.release("sensor-17", by=BY, now=NOW)
    with pytest.raises(CredentialError, match="names none"):
        contacts.admit(SOFT, now=NOW)
