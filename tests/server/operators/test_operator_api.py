"""What operators see and do over mutual TLS; nobody else does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from support.attesting_device import AttestingDevice, boot_of
from support.device_ca import serial
from tpm_mtls.attestation.health import Failure, HealthReport, encode_health
from tpm_mtls_server.database import Database
from tpm_mtls_server.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.backend import BackendThread
    from support.device_ca import DeviceCa
    from support.https import HttpsClient
    from tpm_mtls.identity import Identity

    Connect: TypeAlias = Callable[[int, Identity], HttpsClient]

OLD, NEW = boot_of("vmlinuz-6.12"), boot_of("vmlinuz-6.18")


@pytest.fixture
def device_17(ca: DeviceCa) -> AttestingDevice:
    return AttestingDevice(ca)


@pytest.fixture
def operator(ca: DeviceCa, backend: BackendThread, connect: Connect) -> HttpsClient:
    return connect(backend.port, ca.operator("alice@example.com"))


@pytest.fixture
def registry(tmp_path: Path, backend: BackendThread) -> Registry:
    assert backend.port
    return Registry(Database(f"sqlite:///{tmp_path}/telemetry.db"))


def body(**members: object) -> bytes:
    return json.dumps(members).encode()


ENDPOINTS = [
    ("GET", "/operator/devices"),
    ("GET", "/operator/devices/sensor-17"),
    ("POST", "/operator/devices/sensor-17/approve"),
    ("POST", "/operator/devices/sensor-17/quarantine"),
    ("POST", "/operator/devices/sensor-17/release"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_a_device_is_refused_where_operators_are_answered(
    method: str, path: str, backend: BackendThread, device: Identity, connect: Connect
) -> None:
    answer = connect(backend.port, device).request(method, path, b"{}", {"Content-Type": "application/json"})
    assert (answer.status, answer.body) == (403, {"error": "for operators only"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/whoami"),
        ("POST", "/telemetry"),
        ("GET", "/healthz"),
        ("POST", "/attestation/nonce"),
        ("POST", "/attestation"),
        ("POST", "/health"),
    ],
)
def test_an_operator_is_refused_where_devices_are_answered(
    method: str, path: str, operator: HttpsClient, registry: Registry, device_17: AttestingDevice
) -> None:
    answer = operator.request(method, path, b"{}", {"Content-Type": "application/json"})
    assert (answer.status, answer.body) == (403, {"error": "for devices only"})
    assert registry.device("alice@example.com") is None
    assert registry.device(device_17.name) is None


def test_a_revoked_operator_is_shut_out(ca: DeviceCa, backend: BackendThread, connect: Connect) -> None:
    alice, bob = ca.operator("alice@example.com"), ca.operator("bob@example.com")
    assert connect(backend.port, alice).get("/operator/devices").status == 200
    ca.publish_crl(serial(alice))
    assert connect(backend.port, alice).get("/operator/devices").status == 403
    assert connect(backend.port, bob).get("/operator/devices").status == 200


def test_devices_are_listed_by_name_and_filtered(
    ca: DeviceCa, backend: BackendThread, operator: HttpsClient, registry: Registry
) -> None:
    names = [f"sensor-{number}" for number in (1, 2, 3)]
    devices = [AttestingDevice(ca, name) for name in names]
    for each in devices:
        each.attest(backend.port, OLD)
    devices[1].attest(backend.port, NEW)
    found = operator.get("/operator/devices").body
    assert [(each["name"], each["state"]) for each in found["devices"]] == [
        ("sensor-1", "attested"),
        ("sensor-2", "failing"),
        ("sensor-3", "attested"),
    ]
    assert found["next"] is None
    page = operator.get("/operator/devices?limit=2").body
    assert [each["name"] for each in page["devices"]] == names[:2]
    rest = operator.get(f"/operator/devices?limit=2&after={page['next']}").body
    assert ([each["name"] for each in rest["devices"]], rest["next"]) == (names[2:], None)
    assert [each["name"] for each in operator.get("/operator/devices?state=failing").body["devices"]] == ["sensor-2"]
    registry.groups.define("gateways", by="test", now=registry.audit()[0].at)
    registry.move("sensor-3", "gateways", by="test", now=registry.audit()[0].at)
    assert [each["name"] for each in operator.get("/operator/devices?group=gateways").body["devices"]] == ["sensor-3"]


@pytest.mark.parametrize(
    "query", ["state=good", "limit=0", "limit=1001", "limit=x", "colour=red", "state=failing&state=pending"]
)
def test_a_malformed_query_is_refused(query: str, operator: HttpsClient) -> None:
    assert operator.get(f"/operator/devices?{query}").status == 400


def test_one_device_is_told_with_what_differs(
    backend: BackendThread, operator: HttpsClient, device_17: AttestingDevice
) -> None:
    device_17.attest(backend.port, OLD)
    device_17.attest(backend.port, NEW)
    found = operator.get("/operator/devices/sensor-17").body
    assert (found["name"], found["state"], found["tpm"]) == ("sensor-17", "failing", str(device_17.tpm))
    assert (found["verdict"]["check"], found["verdict"]["about"]) == (9, "policy")
    assert found["baseline"]["boot"] != found["seen"]["boot"]
    assert found["baseline"]["accepted_by"] is None
    newest, older = found["quotes"]
    assert (newest["trusted"], older["trusted"]) == (False, True)
    assert "    kernel changed: /vmlinuz-6.12 → /vmlinuz-6.18" in newest["differences"]
    assert [each["event"] for each in found["history"]][-1] == "first-seen"


def test_a_device_that_never_came_is_not_found(operator: HttpsClient) -> None:
    assert operator.get("/operator/devices/sensor-18").status == 404
    for verb, members in (("approve", {}), ("quarantine", {"reason": "lost"}), ("release", {})):
        answer = operator.post(f"/operator/devices/sensor-18/{verb}", body(**members))
        assert (answer.status, answer.body) == (404, {"error": "no such device"})
    assert operator.post("/operator/devices/sensor-18/forget", b"{}").status == 404


def test_an_approval_makes_what_was_shown_the_baseline_and_tells_by_whom(
    backend: BackendThread, operator: HttpsClient, device_17: AttestingDevice, registry: Registry
) -> None:
    assert device_17.attest(backend.port, OLD)["trusted"]
    assert not device_17.attest(backend.port, NEW)["trusted"]
    boot = operator.get("/operator/devices/sensor-17").body["seen"]["boot"]
    answer = operator.post("/operator/devices/sensor-17/approve", body(boot=boot))
    assert (answer.status, answer.body["boot"]) == (200, boot)
    assert device_17.attest(backend.port, NEW)["trusted"]
    assert not device_17.attest(backend.port, OLD)["trusted"]
    approval = next(each for each in registry.audit("sensor-17") if each.event == "baseline-approved")
    assert (approval.actor, approval.detail["boot"]) == ("alice@example.com", boot)


def test_what_the_device_booted_since_the_operator_looked_is_not_approved(
    backend: BackendThread, operator: HttpsClient, device_17: AttestingDevice
) -> None:
    device_17.attest(backend.port, OLD)
    device_17.attest(backend.port, NEW)
    looked_at = operator.get("/operator/devices/sensor-17").body["seen"]["boot"]
    device_17.attest(backend.port, boot_of("evil"))
    answer = operator.post("/operator/devices/sensor-17/approve", body(boot=looked_at))
    assert answer.status == 409
    assert "has shown another boot since" in answer.body["error"]
    assert not device_17.attest(backend.port, boot_of("evil"))["trusted"]


def test_nothing_that_was_never_shown_is_approved(
    backend: BackendThread, operator: HttpsClient, connect: Connect, device: Identity
) -> None:
    assert connect(backend.port, device).get("/whoami").status == 200
    answer = operator.post("/operator/devices/sensor-17/approve", b"{}")
    assert (answer.status, "has shown nothing" in answer.body["error"]) == (409, True)


def test_a_quarantined_device_is_shut_out_until_it_is_released(
    backend: BackendThread, operator: HttpsClient, connect: Connect, device_17: AttestingDevice, registry: Registry
) -> None:
    client = connect(backend.port, device_17.identity)
    assert client.get("/whoami").status == 200
    assert operator.post("/operator/devices/sensor-17/release", b"{}").status == 409
    answer = operator.post("/operator/devices/sensor-17/quarantine", body(reason="stolen"))
    assert (answer.status, answer.body["state"]) == (200, "quarantined")
    assert answer.body["quarantine"]["reason"] == "stolen"
    assert client.get("/whoami").status == 403
    assert device_17.attest(backend.port, OLD)["state"] == "quarantined"
    assert operator.post("/operator/devices/sensor-17/quarantine", body(reason="again")).status == 409
    assert operator.post("/operator/devices/sensor-17/release", b"{}").body["state"] == "attested"
    assert client.get("/whoami").status == 200
    events = [(each.event, each.actor) for each in registry.audit("sensor-17") if each.actor]
    assert events == [("released", "alice@example.com"), ("quarantined", "alice@example.com")]


@pytest.mark.parametrize(
    ("verb", "sent"),
    [
        ("approve", b""),
        ("approve", b'{"boot":"00"}'),
        ("approve", b'{"force":true}'),
        ("quarantine", b"{}"),
        ("quarantine", b'{"reason":""}'),
        ("quarantine", b'{"reason":"' + b"x" * 501 + b'"}'),
        ("quarantine", b'{"reason":"\xff"}'),
        ("release", b"[]"),
        ("release", b'{"reason":"x"}'),
    ],
)
def test_a_malformed_decision_changes_nothing(
    verb: str,
    sent: bytes,
    backend: BackendThread,
    operator: HttpsClient,
    device_17: AttestingDevice,
    registry: Registry,
) -> None:
    device_17.attest(backend.port, OLD)
    before = registry.device("sensor-17")
    assert operator.post(f"/operator/devices/sensor-17/{verb}", sent).status == 400
    assert registry.device("sensor-17") == before


def test_a_decision_that_a_web_form_could_send_is_refused(
    backend: BackendThread, operator: HttpsClient, device_17: AttestingDevice
) -> None:
    """A browser asks nobody before it sends a form; application/json it does not send to another site unasked."""
    device_17.attest(backend.port, OLD)
    path = "/operator/devices/sensor-17/quarantine"
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert operator.post(path, body(reason="x"), Content_Type=kind).status == 415
    assert operator.request("GET", path).status == 405


def test_a_large_decision_is_refused(operator: HttpsClient) -> None:
    assert operator.post("/operator/devices/sensor-17/release", b" " * 5000).status == 413


def test_reported_health_is_told(
    backend: BackendThread, operator: HttpsClient, connect: Connect, device_17: AttestingDevice
) -> None:
    report = HealthReport(time=1, failures=(Failure(kind="QuoteFailure", reason="0x921", hint="wait"),))
    connect(backend.port, device_17.identity).post("/health", encode_health(report))
    listed: dict[str, Any] = operator.get("/operator/devices").body["devices"][0]["health"]
    assert listed.pop("at").endswith("Z")
    assert listed == {"maintenance": True, "failures": ["QuoteFailure"], "warnings": []}
    shown = operator.get("/operator/devices/sensor-17").body["health_report"]
    assert shown["failures"] == [{"kind": "QuoteFailure", "reason": "0x921", "hint": "wait"}]


def test_an_operators_requests_are_logged_with_the_operator(
    operator: HttpsClient, logged: Callable[[str], list[dict[str, Any]]]
) -> None:
    operator.get("/operator/devices?state=failing")
    (line,) = logged("request")
    assert line["operator"] == "alice@example.com"
    assert (line["path"], line["status"], "device" in line) == ("/operator/devices", 200, False)
