"""Which endpoints a device's state opens: every endpoint, every state, over real TLS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support.attesting import HEALTHY, AttestingDevice
from support.device_ca import serial
from support.judgements import OTHER_TPM, changed_pcr
from tpm_mtls.errors import UsageError
from tpm_mtls_server.endpoints.gate import Gate
from tpm_mtls_server.registry import Mode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.backend import BackendThread
    from support.clock import Clock
    from support.device_ca import DeviceCa
    from support.https import Answer, HttpsClient
    from tpm_mtls.identity import Identity
    from tpm_mtls_server.registry import Registry

    Connect = Callable[[int, Identity], HttpsClient]
    Make = Callable[..., BackendThread]

BY = "alice@example.com"
REQUESTS: dict[str, tuple[str, bytes | None]] = {
    "/whoami": ("GET", None),
    "/healthz": ("GET", None),
    "/telemetry": ("POST", b"{}"),
    "/health": ("POST", HEALTHY),
    "/attestation/nonce": ("POST", None),
    "/attestation": ("POST", b"{}"),
    "/nothing": ("GET", None),
}
USUAL = {
    "/whoami": 200,
    "/healthz": 200,
    "/telemetry": 201,
    "/health": 200,
    "/attestation/nonce": 200,
    "/attestation": 400,
    "/nothing": 404,
}
GATED = ("/telemetry", "/whoami")


def now() -> datetime:
    return datetime.now(UTC)


def ask(client: HttpsClient, path: str) -> Answer:
    method, body = REQUESTS[path]
    return client.request(method, path, body, {"Content-Type": "application/json"} if body else None)


def everything(client: HttpsClient) -> dict[str, int]:
    """The status of each endpoint."""
    return {path: ask(client, path).status for path in REQUESTS}


def unattested(_: World) -> str:
    return "the device has not shown what it booted; let the device send a quote: tpm-mtls agent check"


def attested(world: World) -> None:
    """Its quote passed."""
    assert world.sensor.attest(world.client).body["trusted"]


def failing(world: World) -> str:
    attested(world)
    world.sensor.values = changed_pcr(world.sensor.values, 7)
    assert world.sensor.attest(world.client).body["state"] == "failing"
    return "the device's last quote failed check 9; an operator sees why: tpm-mtls server device show sensor-17"


def pending(world: World) -> str:
    world.registry.groups.define("default", mode=Mode.APPROVE, by=BY, now=now())
    assert world.sensor.attest(world.client).body["state"] == "pending"
    return "what the device booted waits for an operator's approval; tpm-mtls server device approve sensor-17"


def outdated(world: World) -> str:
    attested(world)
    world.clock.offset = timedelta(hours=1, minutes=1)
    return "what the device booted was shown too long ago; let the device send a quote: tpm-mtls agent check"


class World:
    """A device at a backend that requires attestation."""

    def __init__(self, sensor: AttestingDevice, client: HttpsClient, registry: Registry, clock: Clock) -> None:
        self.sensor = sensor
        self.client = client
        self.registry = registry
        self.clock = clock


@pytest.fixture
def world(make_backend: Make, sensor: AttestingDevice, connect: Connect, registry: Registry, clock: Clock) -> World:
    backend = make_backend(require_attestation=GATED, attestation_lifetime=timedelta(hours=1))
    return World(sensor, connect(backend.port, sensor.identity), registry, clock)


def test_nothing_is_required_unless_the_operator_says_so(client: HttpsClient) -> None:
    assert everything(client) == USUAL


def test_an_attested_device_may_do_everything(world: World) -> None:
    attested(world)
    assert everything(world.client) == USUAL


@pytest.mark.parametrize("become", [unattested, failing, pending, outdated])
def test_another_device_is_told_what_to_do_and_may_still_attest_and_report(
    world: World, become: Callable[[World], str]
) -> None:
    reason = become(world)
    assert everything(world.client) == USUAL | dict.fromkeys(GATED, 403)
    for path in GATED:
        answer = ask(world.client, path)
        assert reason == f"{answer.body['error']}; {answer.body['hint']}"
        assert answer.headers.get("Connection") != "close"


@pytest.mark.parametrize("become", [unattested, attested, failing, pending, outdated])
def test_a_quarantined_device_may_only_attest_and_report(world: World, become: Callable[[World], Any]) -> None:
    become(world)
    ask(world.client, "/healthz")
    world.registry.quarantine("sensor-17", reason="stolen?", by=BY, now=now())
    open_to_it = {"/health": 200, "/attestation/nonce": 200, "/attestation": 400}
    assert everything(world.client) == dict.fromkeys(REQUESTS, 403) | open_to_it
    answer = ask(world.client, "/whoami")
    assert answer.body == {
        "error": "the device is quarantined",
        "hint": "an operator lets it in: tpm-mtls server device release sensor-17",
    }
    assert world.sensor.attest(world.client).body["state"] == "quarantined"
    assert ask(world.client, "/telemetry").status == 403, "a good quote does not end a quarantine"
    world.registry.release("sensor-17", by=BY, now=now())
    assert ask(world.client, "/healthz").status == 200


def test_without_requirement_quarantine_shuts_out_all_the_same(client: HttpsClient, registry: Registry) -> None:
    ask(client, "/whoami")
    registry.quarantine("sensor-17", reason="stolen?", by=BY, now=now())
    assert ask(client, "/whoami").status == 403
    assert ask(client, "/nothing").status == 403


def test_a_shorter_lifetime_holds_for_quotes_from_before_it(
    make_backend: Make, sensor: AttestingDevice, connect: Connect, clock: Clock
) -> None:
    long = make_backend(require_attestation=("/telemetry",), attestation_lifetime=timedelta(days=7))
    client = connect(long.port, sensor.identity)
    assert sensor.attest(client).body["trusted"]
    clock.offset = timedelta(hours=2)
    assert ask(client, "/telemetry").status == 201
    long.stop()
    short = make_backend(require_attestation=("/telemetry",), attestation_lifetime=timedelta(hours=1))
    answer = ask(connect(short.port, sensor.identity), "/telemetry")
    assert (answer.status, "too long ago" in answer.body["error"]) == (403, True)


def test_attestation_ends_on_a_kept_connection(world: World) -> None:
    attested(world)
    assert ask(world.client, "/telemetry").status == 201
    world.clock.offset = timedelta(minutes=59)
    assert ask(world.client, "/telemetry").status == 201
    world.clock.offset = timedelta(minutes=61)
    assert ask(world.client, "/telemetry").status == 403


def test_a_withdrawn_key_ends_what_it_vouched_for(world: World) -> None:
    world.sensor.without_certificate()
    name = world.sensor.ak.public.name.hex()
    world.registry.enroll_key("sensor-17", name, by=BY, now=now())
    attested(world)
    assert ask(world.client, "/telemetry").status == 201
    world.registry.withdraw_key(name, by=BY, now=now())
    assert ask(world.client, "/telemetry").status == 403


# a device is what it was


def test_a_device_with_a_tpm_that_comes_without_one_is_refused_everywhere(
    backend: BackendThread, client: HttpsClient, connect: Connect, ca: DeviceCa, registry: Registry
) -> None:
    assert ask(client, "/whoami").status == 200
    soft = ca.device("sensor-17")
    for path in REQUESTS:
        answer = ask(connect(backend.port, soft), path)
        assert answer.status == 403
        assert answer.body["error"] == "the device was seen with a TPM, and its certificate names none"
        assert answer.headers["Connection"] == "close"
    assert everything(client) == USUAL, "who has the TPM is not disturbed"
    rows = [row for row in registry.audit("sensor-17") if row.event == "certificate-refused"]
    assert [row.detail for row in rows] == [{"tpm": None, "serial": f"{serial(soft):040x}"}]


def test_a_device_without_a_tpm_may_come_with_one_later_and_not_go_back(
    backend: BackendThread, connect: Connect, ca: DeviceCa, registry: Registry
) -> None:
    soft = connect(backend.port, ca.device("sensor-17"))
    assert ask(soft, "/whoami").status == 200
    assert ask(connect(backend.port, AttestingDevice(ca).identity), "/whoami").status == 200
    assert ask(soft, "/whoami").status == 403
    events = [row.event for row in registry.audit("sensor-17")]
    assert events == ["certificate-refused", "tpm-seen", "first-seen"]


def test_another_tpm_is_another_machine_until_an_operator_releases_it(
    world: World, make_backend: Make, connect: Connect, ca: DeviceCa
) -> None:
    attested(world)
    other = AttestingDevice(ca, tpm=OTHER_TPM)
    backend = make_backend(require_attestation=GATED)
    for path in REQUESTS:
        answer = ask(connect(backend.port, other.identity), path)
        assert answer.status == 403
        assert "names another TPM" in answer.body["error"]
        assert answer.body["hint"].endswith("an operator may accept it: tpm-mtls server device release sensor-17")
    device = world.registry.release("sensor-17", by=BY, now=now())
    assert (device.tpm, device.verdict, device.trusted_at) == (str(OTHER_TPM), None, None)
    replaced = connect(backend.port, other.identity)
    assert ask(replaced, "/telemetry").status == 403, "what the old one showed does not count"
    assert ask(world.client, "/telemetry").status == 403, "the old one is out"
    other.values = changed_pcr(other.values, 0)
    assert other.attest(replaced).body["trusted"], "it has a baseline of its own"
    assert ask(replaced, "/telemetry").status == 201


# the option


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/attestation", "it is the way to become attested"),
        ("/health", "it is the way to become attested"),
        ("/nothing", "it is no path for devices"),
        ("/metrics", "it is no path for devices"),
        ("telemetry", "it is no path for devices"),
    ],
)
def test_what_cannot_require_attestation_is_refused_at_the_start(make_backend: Make, path: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        make_backend(require_attestation=("/telemetry", path))
    assert caught.value.hint == "take one of /healthz, /telemetry, /whoami"


def test_a_gate_without_paths_is_open() -> None:
    assert Gate.of((), known=("/whoami",), lifetime=timedelta(hours=1)).paths == frozenset()


def test_a_store_that_does_not_answer_is_told_by_healthz_unless_that_requires_attestation(
    make_backend: Make, sensor: AttestingDevice, connect: Connect, tmp_path: Path
) -> None:
    for paths, status in (((), 503), (("/healthz",), 503)):
        backend = make_backend(require_attestation=paths)
        client = connect(backend.port, sensor.identity)
        assert ask(client, "/healthz").status == (403 if paths else 200)
        backend.call(backend.service._endpoints._database.close)
        for file in tmp_path.glob("telemetry.db*"):
            file.unlink()
        (tmp_path / "telemetry.db").write_bytes(b"no database " * 100)
        answer = ask(client, "/healthz")
        assert answer.status == status
        assert ("store" in answer.body) is not bool(paths)
        assert ask(client, "/whoami").body == {"error": "the store is not available"}
        (tmp_path / "telemetry.db").unlink()
