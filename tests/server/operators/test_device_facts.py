"""What is told about a device beyond what its row says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from support.judgements import TPM
from tpm_mtls_server.database import Database
from tpm_mtls_server.operators.device_facts import device_facts, read_dossier
from tpm_mtls_server.operators.device_words import dossier_lines
from tpm_mtls_server.peer import DevicePeer
from tpm_mtls_server.registry import Registry
from tpm_mtls_server.registry.attestations import Attestations
from tpm_mtls_server.registry.background import Findings, Shown
from tpm_mtls_server.registry.contacts import Contacts

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 11, 22, 13, 11, tzinfo=UTC)
DAY = timedelta(days=1)
PEER = DevicePeer("camera", 17, b"", None, NOW, NOW + 90 * DAY, tpm=TPM, certificate=b"DER")
REFUSED = Findings(trusted=False, check=9, pending=False, reason="PCR 0", clock="{}")


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    opened = Database(database)
    with Registry.open(database) as registry:
        assert registry.groups.all()
    yield opened
    opened.close()


def later(seconds: int) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("quote", "report", "request_", "seen"),
    [
        (None, None, 59, "13:11:00"),  # of requests one a minute is noted
        (None, None, 60, "13:12:00"),
        (54, None, 58, "13:11:54"),
        (54, 55, 58, "13:11:55"),
        (55, 54, 58, "13:11:55"),
        (54, 55, 61, "13:12:01"),
    ],
)
def test_a_device_was_last_seen_no_earlier_than_its_quote_and_report(
    quote: int | None, report: int | None, request_: int, seen: str, store: Database
) -> None:
    contacts, attestations = Contacts(store), Attestations(store)
    contacts.admit(PEER, now=NOW)
    if quote is not None:
        shown = Shown("000b" + "22" * 32, b"attest", b"signature", {"sha256": {0: "00" * 32}})
        attestations.record(attestations.background("camera"), shown, REFUSED, lifetime=DAY, now=later(quote))
    if report is not None:
        attestations.report_health("camera", '{"version":1,"time":1}', now=later(report))
    contacts.admit(PEER, now=later(request_))
    dossier = read_dossier(Registry(store), "camera")
    assert dossier is not None
    assert device_facts(dossier.device, now=NOW)["last_seen"] == f"2026-11-22T{seen}Z"
    assert f"  last seen:    2026-11-22T{seen}Z; first 2026-11-22T13:11:00Z" in dossier_lines(dossier, now=NOW)
