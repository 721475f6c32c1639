"""What ``tpm-mtls agent status`` says of the duties."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tpm_mtls.attestation.health import Failure, HealthReport
from tpm_mtls.attestation.messages import DeviceState, Verdict
from tpm_mtls_agent.duties.record import DutiesRecord, Outcome, save_duties
from tpm_mtls_agent.health import publish
from tpm_mtls_agent.requests.listening import Listener
from tpm_mtls_agent.status import Status, describe, read_status

if TYPE_CHECKING:
    import pytest

SOCKET = Path("/run/tpmd.sock")
FAILURE = Failure(kind="SignFailure", reason="the TLS key does not sign", hint="look")
REFUSED = Verdict(trusted=False, check=9, reason="PCR 7 differs", state=DeviceState.FAILING)
RECORD = DutiesRecord(
    life_cycle="restarted",
    life_cycle_text="the TPM was restarted 2 times",
    backend=Outcome(time=0, error="nobody answers", hint="look"),
    verdict=REFUSED,
    attested=60,
    renewal=Outcome(time=120),
    renews_at=86_400,
)


def lines(health: HealthReport | None, duties: DutiesRecord | None) -> list[str]:
    return describe(Status(SOCKET, Listener(7, 0), None, health, duties)).splitlines()[1:]


def test_a_person_reads_of_health_and_trust_apart() -> None:
    assert lines(None, None) == []
    assert lines(HealthReport(time=0, failures=(FAILURE,)), RECORD) == [
        "maintenance mode, SignFailure: the TLS key does not sign (1970-01-01 00:00:00 UTC)",
        "the TPM was restarted 2 times",
        "the backend does not trust what was booted, failing (1970-01-01 00:01:00 UTC): PCR 7 differs",
        "backend: nobody answers (1970-01-01 00:00:00 UTC)",
        "renewal: well (1970-01-01 00:02:00 UTC)",
        "the certificate is renewed from 1970-01-02 00:00:00 UTC on",
    ]
    trusted = Verdict(trusted=True, state=DeviceState.ATTESTED)
    assert lines(None, DutiesRecord(verdict=trusted, attested=0)) == [
        "the backend trusts what was booted, attested (1970-01-01 00:00:00 UTC)"
    ]


def test_a_script_gets_what_is_in_the_files_and_damaged_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    publish(tmp_path, HealthReport(time=7, failures=(FAILURE,)))
    save_duties(tmp_path, RECORD)
    found = read_status(tmp_path / "none.sock", tmp_path, tmp_path).as_dict()
    assert found["health"]["failures"][0]["kind"] == "SignFailure"
    assert msgspec.convert(found["duties"], DutiesRecord) == RECORD

    (tmp_path / "health.json").write_text("{")
    (tmp_path / "duties.json").write_text("{")
    assert read_status(tmp_path / "none.sock", tmp_path, tmp_path).as_dict() == {
        "socket": str(tmp_path / "none.sock"),
        "listening": False,
    }
