"""A state is told when it begins and when it ends; the record shows the last of each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tpm_mtls.attestation.messages import DeviceState, Verdict
from tpm_mtls.errors import IdentityError, PeerUnreachableError, PeerUntrustedError
from tpm_mtls_agent.duties.record import DUTIES, DutiesRecord, Outcome, load_duties, save_duties
from tpm_mtls_agent.duties.told import Told

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.getLogger("tpm_mtls_agent.test")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOG.name)
    return caplog


def unreachable(text: str) -> PeerUnreachableError:
    return PeerUnreachableError(text, hint="look at the network", host="b")


def test_trouble_is_told_once_for_each_class_and_its_end_once(lines: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    told = Told(LOG, tmp_path)
    told.good("backend", "it answers again")
    for attempt in range(1000):
        told.trouble("backend", unreachable(f"no answer, attempt {attempt}"))
    told.trouble("backend", PeerUntrustedError("a stranger", hint="who?", host="b"))
    told.trouble("renewal", unreachable("the CA"))
    told.good("backend", "it answers again")
    told.good("backend", "it answers again")
    assert lines.messages == [
        "no answer, attempt 0; look at the network",
        "a stranger; who?",
        "the CA; look at the network",
        "it answers again",
    ]


def test_an_empty_text_is_not_told(lines: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    told = Told(LOG, tmp_path)
    told.state("logs", ("a",), "")
    told.state("logs", ("b",), "there is no log")
    assert lines.messages == ["there is no log"]


def test_the_record_is_for_all_to_read_and_comes_back(tmp_path: Path) -> None:
    told = Told(LOG, tmp_path / "run")
    assert load_duties(tmp_path / "run") is None
    verdict = Verdict(trusted=True, state=DeviceState.ATTESTED)
    told.note(verdict=verdict, attested=7, backend=Outcome(time=7))
    told.save()
    path = tmp_path / "run" / DUTIES
    assert path.stat().st_mode & 0o777 == 0o644
    assert load_duties(tmp_path / "run") == DutiesRecord(verdict=verdict, attested=7, backend=Outcome(time=7))

    path.write_text('{"format": 2}')
    with pytest.raises(IdentityError):
        load_duties(tmp_path / "run")


def test_a_folder_that_cannot_be_written_to_is_told_once(lines: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = Told(LOG, tmp_path / "file")
    told.save()
    told.save()
    assert len(lines.messages) == 1
    save_duties(tmp_path / "run", told.record)
