"""What devices say about their TPM, over real TLS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from support.attesting import HEALTHY, AttestingDevice
from support.device_ca import DeviceCa, serial

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.backend import BackendThread
    from support.clock import Clock
    from support.https import HttpsClient
    from tpm_mtls.identity import Identity
    from tpm_mtls_server.registry import Registry

    Connect = Callable[[int, Identity], HttpsClient]


def now() -> datetime:
    return datetime.now(UTC)


def test_a_health_report_is_kept_and_answered_with_whether_a_quote_is_wanted(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry, clock: Clock
) -> None:
    answer = client.post("/health", HEALTHY)
    assert (answer.status, answer.body) == (200, {"attest": True})
    sensor.attest(client)
    assert client.post("/health", HEALTHY).body == {"attest": False}
    device = registry.device(sensor.name)
    assert device is not None
    assert device.health is not None
    assert '"wrap"' in device.health
    clock.offset = timedelta(hours=12, minutes=1)
    assert client.post("/health", HEALTHY).body == {"attest": True}, "half of the lifetime is over"


def test_what_an_operator_decides_makes_the_server_want_a_quote(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    sensor.attest(client)
    assert client.post("/health", HEALTHY).body == {"attest": False}
    registry.groups.define("default", pcrs=[0], by="alice@example.com", now=now())
    assert client.post("/health", HEALTHY).body == {"attest": True}
    sensor.attest(client)
    assert client.post("/health", HEALTHY).body == {"attest": False}


def test_a_device_without_a_tpm_is_not_asked_for_a_quote(
    backend: BackendThread, device: Identity, connect: Connect
) -> None:
    answer = connect(backend.port, device).post("/health", b'{"time": 1, "is_tpm": false}')
    assert (answer.status, answer.body) == (200, {"attest": False})


@pytest.mark.parametrize("body", [b"", b"[]", b'{"time": "now"}', b'{"time": 1, "more": 1}', b'{"time": -1}'])
def test_what_is_no_health_report_is_refused(client: HttpsClient, registry: Registry, body: bytes) -> None:
    answer = client.post("/health", body)
    assert answer.status == 400
    assert answer.body["error"].startswith("the health report is malformed")
    device = registry.device("sensor-17")
    assert device is not None
    assert device.health is None


def test_a_revoked_device_reports_nothing(client: HttpsClient, sensor: AttestingDevice, ca: DeviceCa) -> None:
    assert client.post("/health", HEALTHY).status == 200
    ca.publish_crl(serial(sensor.identity))
    answer = client.post("/health", HEALTHY)
    assert (answer.status, answer.body) == (403, {"error": "certificate revoked"})
