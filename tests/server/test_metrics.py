"""Numbers for monitoring, in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.attesting_device import AttestingDevice, boot_of
from tpm_mtls.attestation.health import Failure, FailureKind, HealthReport, encode_health
from tpm_mtls.attestation.messages import DeviceState
from tpm_mtls_server.database import Database
from tpm_mtls_server.metrics import OTHER, Family, Metrics, exposition
from tpm_mtls_server.registry import Registry, Summary, schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.backend import BackendThread
    from support.device_ca import DeviceCa
    from support.https import HttpsClient
    from tpm_mtls.identity import Identity

    Connect: TypeAlias = Callable[[int, Identity], HttpsClient]

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

# https://prometheus.io/docs/instrumenting/exposition_formats/ and, for names, /docs/concepts/data_model/
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
_HELP = re.compile(rf"# HELP ({_NAME}) (?:[^\\\n]|\\\\|\\n)+")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge)")
_SAMPLE = re.compile(rf"({_NAME})(?:{{({_LABEL}(?:,{_LABEL})*)}})? ([0-9]+(?:\.[0-9]+)?)")


def parse(text: str) -> dict[str, float]:
    """The samples in ``text`` by name and labels; every line must be in the format, and in its order."""
    assert text.endswith("\n")
    samples: dict[str, float] = {}
    family, described = "", set()
    for line in text.removesuffix("\n").split("\n"):
        if found := _HELP.fullmatch(line):
            family = found[1]
            assert family not in described, "each family once, with its samples together"
            described.add(family)
        elif found := _TYPE.fullmatch(line):
            assert found[1] == family, "TYPE follows its HELP"
            assert found[1].endswith("_total") == (found[2] == "counter"), line
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == family, "samples follow their family's TYPE"
            key = line.rpartition(" ")[0]
            assert key not in samples, key
            samples[key] = float(sample[3])
    return samples


def empty_summary() -> Summary:
    return Summary(dict.fromkeys(DeviceState, 0), 0, dict.fromkeys(get_args(FailureKind), 0))


def test_a_server_that_nobody_asked_yet_has_every_number_but_those_of_requests() -> None:
    """An alert on a number that is not there stays silent."""
    samples = parse(exposition(Metrics(), empty_summary(), own_expiry=NOW))
    for state in DeviceState:
        assert samples[f'tpm_mtls_devices{{state="{state}"}}'] == 0
    for check in ("none", *range(1, 10)):
        assert samples[f'tpm_mtls_verdicts_total{{check="{check}"}}'] == 0
    for kind in get_args(FailureKind):
        assert samples[f'tpm_mtls_devices_failing_health{{failure="{kind}"}}'] == 0
    assert samples["tpm_mtls_server_certificate_expiry_timestamp_seconds"] == NOW.timestamp()


def test_what_is_counted_is_told() -> None:
    metrics = Metrics()
    for status in (200, 200, 403):
        metrics.count_request("/telemetry", status)
    metrics.count_request(OTHER, 404)
    for check in (None, 9, 9):
        metrics.count_verdict(check)
    metrics.count_report(maintenance=True)
    samples = parse(exposition(metrics, empty_summary(), own_expiry=NOW))
    assert samples['tpm_mtls_requests_total{path="/telemetry",status="200"}'] == 2
    assert samples['tpm_mtls_requests_total{path="/telemetry",status="403"}'] == 1
    assert samples['tpm_mtls_requests_total{path="other",status="404"}'] == 1
    assert samples['tpm_mtls_verdicts_total{check="none"}'] == 1
    assert samples['tpm_mtls_verdicts_total{check="9"}'] == 2
    assert samples['tpm_mtls_health_reports_total{maintenance="true"}'] == 1


@given(value=st.text())
def test_no_label_breaks_the_format(value: str) -> None:
    family = Family("a_total", "counter", "About.", {(("label", value),): 1})
    text = "".join(f"{line}\n" for line in family.lines())
    ((key, number),) = parse(text).items()
    quoted = key.removeprefix('a_total{label="').removesuffix('"}')
    assert number == 1
    assert re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), quoted) == value


@pytest.mark.parametrize(
    "text", ["a 1", "# HELP a b\n# TYPE a counter\na 1\n", '# HELP a b\n# TYPE a gauge\na{b="""} 1\n']
)
def test_the_format_is_checked_strictly(text: str) -> None:
    with pytest.raises(AssertionError):
        parse(text)


def test_the_server_tells_what_happened(
    ca: DeviceCa, backend: BackendThread, connect: Connect, device: Identity
) -> None:
    machine = AttestingDevice(ca, "sensor-2")
    machine.attest(backend.port, boot_of("vmlinuz-6.12"))
    machine.attest(backend.port, boot_of("vmlinuz-6.18"))
    report = HealthReport(time=1, failures=(Failure(kind="EncFailure", reason="r", hint="h"),))
    client = connect(backend.port, device)
    client.post("/health", encode_health(report))
    client.get("/nowhere/secret?token=geheim")
    operator = connect(backend.port, ca.operator())
    status, kind, text = operator.get_text("/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = parse(text)
    assert samples['tpm_mtls_devices{state="failing"}'] == 1
    assert samples['tpm_mtls_devices{state="unattested"}'] == 1
    assert samples['tpm_mtls_devices_failing_health{failure="EncFailure"}'] == 1
    assert samples["tpm_mtls_devices_reporting_health"] == 1
    assert samples['tpm_mtls_health_reports_total{maintenance="true"}'] == 1
    assert samples['tpm_mtls_verdicts_total{check="9"}'] == 1
    assert samples['tpm_mtls_verdicts_total{check="none"}'] == 1
    assert samples['tpm_mtls_requests_total{path="/attestation",status="200"}'] == 2
    assert samples['tpm_mtls_requests_total{path="other",status="404"}'] == 1
    operator.get("/operator/devices/sensor-2")
    assert 'path="/operator/devices/{name}"' in operator.get_text("/metrics")[2]
    assert "geheim" not in text
    assert "sensor" not in text


_MAYBE_TIME = st.none() | st.integers(-2, 2).map(lambda hours: int((NOW + timedelta(hours=hours)).timestamp()))
_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "quarantined_at": _MAYBE_TIME,
            "judged_at": _MAYBE_TIME,
            "trusted": st.booleans(),
            "pending": st.booleans(),
            "trusted_until": _MAYBE_TIME,
            "health": st.sampled_from([None, ()] + [(kind,) for kind in get_args(FailureKind)[:2]]),
        }
    ),
    max_size=8,
)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/registry.db")


@given(rows=_ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_the_database_counts_states_as_each_device_is_told(database: Database, rows: list[dict[str, object]]) -> None:
    registry = Registry(database)
    with database.writing() as connection:
        connection.execute(schema.devices.delete())
        for number, row in enumerate(rows):
            kinds = row["health"]
            report = None
            if isinstance(kinds, tuple):
                failures = tuple(Failure(kind=kind, reason="r", hint="h") for kind in kinds)
                report = encode_health(HealthReport(time=1, failures=failures)).decode()
            values = {
                **row,
                "health": report,
                "health_at": None if report is None else 1,
                "name": f"d{number}",
                "group_name": "default",
                "first_seen": 0,
                "last_seen": 0,
                "serial": "00",
                "not_after": 0,
                "certificate": b"",
                "revision": 0,
                "wanted": False,
                "reason": "",
            }
            connection.execute(schema.devices.insert().values(values))
    found = registry.summary(NOW)
    devices = registry.devices(now=NOW)
    assert found.states == {state: sum(each.state(NOW) is state for each in devices) for state in DeviceState}
    assert found.reporting == sum(each.health is not None for each in devices)
    assert sum(found.failures.values()) == sum(bool(row["health"]) for row in rows)
