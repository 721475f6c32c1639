"""Quotes over real TLS: what a device shows, and what the backend makes of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from support.attesting import AttestingDevice, ask_nonce
from support.backend import running_backend
from support.https import Answer, HttpsClient, device_context, tls_socket
from support.judgements import OTHER_TPM, changed_pcr, clock_info
from support.policies import Operator, pcr_policy
from tpm_mtls.attestation.messages import EVIDENCE_LIMIT, IMA_LOG_LIMIT
from tpm_mtls.policy.document import encode as encode_policy
from tpm_mtls.policy.states import encode_state, state_of
from tpm_mtls_server.database import Database
from tpm_mtls_server.registry import Mode, ReferenceKind, Registry
from tpm_mtls_server.registry.attestations import Attestations
from tpm_mtls_server.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.backend import BackendThread
    from support.clock import Clock
    from support.device_ca import DeviceCa
    from tpm_mtls.identity import Identity
    from tpm_mtls_server.registry.background import Background

    Connect = Callable[[int, Identity], HttpsClient]
    Make = Callable[..., BackendThread]

BY = "alice@example.com"
ATTESTED = {"trusted": True, "check": None, "differences": [], "state": "attested"}


def now() -> datetime:
    return datetime.now(UTC)


def verdict(answer: Answer) -> tuple[bool, int | None, str]:
    """What the backend made of a quote."""
    assert answer.status == 200, answer.body
    return answer.body["trusted"], answer.body["check"], answer.body["state"]


# what passes


def test_the_first_quote_that_passes_becomes_the_baseline(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    answer = sensor.attest(client)
    assert answer.status == 200
    assert answer.body.pop("reason").startswith("the quote is genuine")
    assert answer.body == ATTESTED
    baseline = registry.baseline(sensor.name)
    assert baseline is not None
    assert baseline.pcrs["sha256"][0] == sensor.values["sha256"][0].hex()
    assert 16 not in baseline.pcrs["sha256"], "only what was signed"
    assert baseline.accepted_by == ""
    second = sensor.attest(client)
    assert verdict(second) == (True, None, "attested")
    assert second.body["reason"].startswith("this device booted what it should")
    assert [row.trusted for row in registry.quotes(sensor.name)] == [True, True]
    assert [row.event for row in registry.audit(sensor.name)] == ["attested", "baseline-learned", "first-seen"]


def test_another_boot_is_refused_explained_and_approved(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    sensor.attest(client)
    sensor.values = changed_pcr(sensor.values, 4)
    answer = sensor.attest(client)
    assert verdict(answer) == (False, 9, "failing")
    assert "PCR 4" in answer.body["reason"]
    assert any("PCR 4" in line for line in answer.body["differences"])
    row = registry.quotes(sensor.name)[0]
    assert (row.trusted, row.check, row.state, list(row.differences)) == (
        False,
        9,
        "failing",
        answer.body["differences"],
    )
    registry.approve(sensor.name, by=BY, now=now())
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    sensor.values = changed_pcr(sensor.values, 7)
    assert verdict(sensor.attest(client)) == (False, 9, "failing")


def test_where_an_operator_must_approve_a_learned_baseline_does_not_count(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    registry.groups.define("strict", mode=Mode.APPROVE, by=BY, now=now())
    registry.move(sensor.name, "strict", by=BY, now=now())
    assert verdict(sensor.attest(client)) == (False, 9, "pending")
    registry.approve(sensor.name, by=BY, now=now())
    assert verdict(sensor.attest(client)) == (True, None, "attested")


def test_a_group_may_leave_pcrs_out(client: HttpsClient, sensor: AttestingDevice, registry: Registry) -> None:
    registry.groups.define("default", pcrs=[0, 7], by=BY, now=now())
    sensor.attest(client)
    sensor.values = changed_pcr(sensor.values, 4)
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    sensor.values = changed_pcr(sensor.values, 7)
    assert verdict(sensor.attest(client)) == (False, 9, "failing")


def test_a_key_that_an_operator_enrolled_needs_no_certificate(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    sensor.without_certificate()
    assert verdict(sensor.attest(client)) == (False, 2, "failing")
    name = sensor.ak.public.name.hex()
    registry.enroll_key(sensor.name, name, by=BY, now=now())
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    registry.withdraw_key(name, by=BY, now=now())
    assert verdict(sensor.attest(client)) == (False, 2, "failing")


def add_reference(registry: Registry, kind: ReferenceKind, content: bytes) -> int:
    return registry.groups.add_reference("default", kind, content.decode(), by=BY, now=now()).id


def test_values_that_an_operator_gave_are_what_all_devices_are_held_against(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    registry.groups.define("default", mode=Mode.VALUES, by=BY, now=now())
    answer = sensor.attest(client)
    assert verdict(answer) == (False, 9, "failing"), "there are none yet"
    wanted = {"sha256": {pcr: sensor.values["sha256"][pcr] for pcr in (0, 4, 7)}}
    number = add_reference(registry, ReferenceKind.VALUES, encode_state(state_of(wanted, now=now())))
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    sensor.values = changed_pcr(sensor.values, 8)
    assert verdict(sensor.attest(client)) == (True, None, "attested"), "not among them"
    sensor.values = changed_pcr(sensor.values, 4)
    answer = sensor.attest(client)
    assert verdict(answer) == (False, 9, "failing")
    assert "PCR 4" in answer.body["reason"]
    other = {"sha256": {4: sensor.values["sha256"][4]}}
    add_reference(registry, ReferenceKind.VALUES, encode_state(state_of(other, now=now())))
    assert verdict(sensor.attest(client)) == (True, None, "attested"), "one of several states"
    registry.groups.remove_reference(number + 1, by=BY, now=now())
    assert verdict(sensor.attest(client)) == (False, 9, "failing")


def test_signed_policies_are_what_all_devices_are_held_against(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry, tmp_path: Path
) -> None:
    operator, other = Operator(tmp_path), Operator(tmp_path)
    registry.groups.define("default", mode=Mode.SIGNED, by=BY, now=now())
    wanted = pcr_policy({7: sensor.values["sha256"][7].hex()})
    add_reference(registry, ReferenceKind.SIGNED, encode_policy(operator.sign(wanted)))
    assert verdict(sensor.attest(client)) == (False, 9, "failing"), "nobody's signature counts yet"
    add_reference(registry, ReferenceKind.SIGNER, msgspec.json.encode(other.signer))
    assert verdict(sensor.attest(client)) == (False, 9, "failing"), "another's does not"
    add_reference(registry, ReferenceKind.SIGNER, msgspec.json.encode(operator.signer))
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    sensor.values = changed_pcr(sensor.values, 7)
    assert verdict(sensor.attest(client)) == (False, 9, "failing")


@pytest.mark.parametrize("kind", [ReferenceKind.VALUES, ReferenceKind.SIGNED, ReferenceKind.SIGNER])
def test_a_damaged_reference_lets_nobody_pass(
    client: HttpsClient,
    sensor: AttestingDevice,
    registry: Registry,
    kind: ReferenceKind,
    logged: Callable[[str], list[dict[str, Any]]],
) -> None:
    mode = Mode.VALUES if kind is ReferenceKind.VALUES else Mode.SIGNED
    registry.groups.define("default", mode=mode, by=BY, now=now())
    add_reference(registry, kind, b"{}")
    answer = sensor.attest(client)
    assert (answer.status, answer.body) == (503, {"error": "what the quote is judged by cannot be read"})
    assert "reference 1 of the group default" in logged("policy error")[0]["error"]
    assert registry.quotes(sensor.name) == []


# the nonce


def test_a_quote_counts_once(client: HttpsClient, sensor: AttestingDevice, registry: Registry) -> None:
    body = sensor.evidence(ask_nonce(client))
    assert verdict(client.post("/attestation", body)) == (True, None, "attested")
    assert verdict(client.post("/attestation", body)) == (False, 1, "attested"), "an old quote says nothing new"
    assert [row.check for row in registry.quotes(sensor.name)] == [1, None]


def test_a_quote_that_was_sent_again_does_not_make_an_unattested_device_anything(
    client: HttpsClient, sensor: AttestingDevice
) -> None:
    assert verdict(client.post("/attestation", sensor.evidence(bytes(32)))) == (False, 1, "unattested")


def test_a_stale_nonce_is_refused(client: HttpsClient, sensor: AttestingDevice, clock: Clock) -> None:
    nonce, other = ask_nonce(client), ask_nonce(client)
    clock.offset = timedelta(minutes=4, seconds=50)
    assert verdict(client.post("/attestation", sensor.evidence(nonce))) == (True, None, "attested")
    clock.offset = timedelta(minutes=5, seconds=10)
    answer = client.post("/attestation", sensor.evidence(other))
    assert verdict(answer) == (False, 1, "attested")
    assert "too late" in answer.body["reason"]


def test_another_devices_nonce_is_refused_and_stays_good(
    backend: BackendThread, client: HttpsClient, sensor: AttestingDevice, ca: DeviceCa, connect: Connect
) -> None:
    thief = AttestingDevice(ca, "sensor-18", tpm=OTHER_TPM)
    nonce = ask_nonce(client)
    answer = connect(backend.port, thief.identity).post("/attestation", thief.evidence(nonce))
    assert verdict(answer) == (False, 1, "unattested")
    assert "another device" in answer.body["reason"]
    assert verdict(client.post("/attestation", sensor.evidence(nonce))) == (True, None, "attested")


def test_only_the_newest_nonces_of_a_device_are_good(client: HttpsClient, sensor: AttestingDevice) -> None:
    nonces = [ask_nonce(client) for _ in range(5)]
    assert len(set(nonces)) == 5
    assert verdict(client.post("/attestation", sensor.evidence(nonces[0]))) == (False, 1, "unattested")
    assert verdict(client.post("/attestation", sensor.evidence(nonces[1]))) == (True, None, "attested")
    assert verdict(client.post("/attestation", sensor.evidence(nonces[4]))) == (True, None, "attested")


def test_of_sixteen_uses_of_a_nonce_at_once_one_counts(
    backend: BackendThread, sensor: AttestingDevice, client: HttpsClient
) -> None:
    body = sensor.evidence(ask_nonce(client))

    def send(_: int) -> tuple[int, Any]:
        one = HttpsClient(backend.port, sensor.identity)
        try:
            answer = one.post("/attestation", body)
        finally:
            one.close()
        return answer.status, answer.body.get("check", "busy")

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(send, range(16)))
    assert answers.count((200, None)) == 1
    assert set(answers) <= {(200, None), (200, 1), (429, "busy")}


# the other checks, through the endpoint: each with its number


def test_a_quote_with_one_thing_wrong_is_refused_by_number(
    client: HttpsClient, sensor: AttestingDevice, ca: DeviceCa
) -> None:
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    others = AttestingDevice(ca, "sensor-18", tpm=OTHER_TPM)
    nonce = ask_nonce(client)
    assert verdict(client.post("/attestation", others.evidence(nonce))) == (False, 2, "failing")
    assert verdict(sensor.attest(client, signature=b"\0\x18\0\x0b\0\1\1\0\1\1")) == (False, 3, "failing")
    nonce = ask_nonce(client)
    assert verdict(client.post("/attestation", sensor.evidence(bytes(32), nonce=nonce))) == (False, 5, "failing")
    zeros = {"sha256": dict.fromkeys(range(16), "00" * 32)}
    assert verdict(sensor.attest(client, pcrs=zeros)) == (False, 6, "failing")
    assert verdict(sensor.attest(client, clock=clock_info(1))) == (False, 7, "failing")
    assert verdict(sensor.attest(client, event_log=b"no log")) == (False, 8, "failing")
    assert verdict(sensor.attest(client)) == (True, None, "attested")


def test_a_fallen_clock_is_forgiven_by_an_approval(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    sensor.attest(client, clock=clock_info(9_000_000))
    assert verdict(sensor.attest(client, clock=clock_info(5000))) == (False, 7, "failing")
    registry.approve(sensor.name, by=BY, now=now())
    assert verdict(sensor.attest(client, clock=clock_info(6000))) == (True, None, "attested")


def test_without_a_crl_nobody_knows_about_a_keys_certificate(
    make_backend: Make, sensor: AttestingDevice, connect: Connect
) -> None:
    client = connect(make_backend(crl=None).port, sensor.identity)
    assert verdict(sensor.attest(client)) == (False, 2, "failing")


# what is no quote


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_quote_is_malformed_and_kept_nowhere(client: HttpsClient, registry: Registry, body: bytes) -> None:
    answer = client.post("/attestation", body)
    assert answer.status == 400
    assert answer.body["error"].startswith("malformed QuoteEvidence")
    assert registry.quotes("sensor-17") == []


def test_a_truncated_quote_is_malformed_and_its_nonce_stays_good(client: HttpsClient, sensor: AttestingDevice) -> None:
    nonce = ask_nonce(client)
    body = sensor.evidence(nonce)
    assert client.post("/attestation", body[:-20]).status == 400
    assert verdict(client.post("/attestation", body)) == (True, None, "attested")


def test_a_body_has_its_own_limit_on_each_path(
    backend: BackendThread, client: HttpsClient, sensor: AttestingDevice
) -> None:
    assert client.post("/attestation", b" " * (1024 * 1024)).status == 400, "not too large"
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    for path, limit in ((b"/attestation", EVIDENCE_LIMIT), (b"/health", 64 * 1024), (b"/telemetry", 64 * 1024)):
        with tls_socket(backend.port, device_context(sensor.identity)) as sock:
            sock.sendall(head % (path, limit + 1))
            answer = sock.recv(4096)
            assert answer.startswith(b"HTTP/1.1 413 "), path
            assert b"larger than %d bytes" % limit in answer


def test_the_largest_logs_arrive(client: HttpsClient, sensor: AttestingDevice) -> None:
    answer = sensor.attest(client, event_log=bytes(1024 * 1024), ima_log=bytes(IMA_LOG_LIMIT))
    assert verdict(answer) == (False, 8, "failing")


def test_a_device_sends_one_quote_at_a_time(
    backend: BackendThread, client: HttpsClient, sensor: AttestingDevice
) -> None:
    with tls_socket(backend.port, device_context(sensor.identity)) as sock:
        sock.sendall(
            b"POST /attestation HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
        busy = client.post("/attestation", b"{}")
        assert (busy.status, busy.headers["Retry-After"]) == (429, "5")
        sock.sendall(b"          ")
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_of_more_devices_than_the_memory_is_for_some_wait(
    backend: BackendThread, ca: DeviceCa, client: HttpsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpm_mtls_server.endpoints.attestation.UPLOADS", 1)
    with tls_socket(backend.port, device_context(ca.device("sensor-18"))) as sock:
        sock.sendall(
            b"POST /attestation HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
        busy = client.post("/attestation", b"{}")
        assert (busy.status, busy.headers["Retry-After"]) == (503, "5")


def test_an_attestation_key_that_cannot_be_read_is_no_device_s(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry
) -> None:
    assert verdict(sensor.attest(client, attestation_key=b"nonsense")) == (False, 2, "failing")
    assert registry.quotes(sensor.name)[0].attestation_key == ""


def test_a_quote_that_comes_too_slowly_gets_408(make_backend: Make, device: Identity) -> None:
    backend = make_backend(limits=Limits(evidence=0.2))
    with tls_socket(backend.port, device_context(device)) as sock:
        sock.sendall(
            b"POST /attestation HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")


# restarts, and two servers


def test_a_nonce_outlives_a_restart_of_the_server(
    make_backend: Make, sensor: AttestingDevice, connect: Connect
) -> None:
    first = make_backend()
    client = connect(first.port, sensor.identity)
    nonce = ask_nonce(client)
    client.close()
    first.stop()
    second = connect(make_backend().port, sensor.identity)
    body = sensor.evidence(nonce)
    assert verdict(second.post("/attestation", body)) == (True, None, "attested")
    assert verdict(second.post("/attestation", body)) == (False, 1, "attested")


def test_two_server_processes_share_one_database(ca: DeviceCa, sensor: AttestingDevice, tmp_path: Path) -> None:
    with running_backend(tmp_path, ca.server(), crl=ca.crl_file) as one:
        (tmp_path / "two").mkdir()
        database = f"sqlite:///{tmp_path}/telemetry.db"
        options = ("--database", database, "--require-attestation", "/telemetry")
        with running_backend(tmp_path / "two", ca.server(), *options, crl=ca.crl_file) as two:
            here, there = HttpsClient(one.port, sensor.identity), HttpsClient(two.port, sensor.identity)
            assert there.post("/telemetry", b"{}").status == 403
            body = sensor.evidence(ask_nonce(here))
            with ThreadPoolExecutor(2) as threads:
                answers = list(threads.map(lambda each: each.post("/attestation", body), (here, there)))
            assert sorted(str(answer.body["check"]) for answer in answers) == ["1", "None"]
            assert there.post("/telemetry", b"{}").status == 201
            here.close()
            there.close()


def test_a_crash_between_judging_and_storing_leaves_nothing_half(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry, tmp_path: Path
) -> None:
    """The nonce is gone, and nothing else happened."""
    body = sensor.evidence(ask_nonce(client))
    with Registry.open(f"sqlite:///{tmp_path}/telemetry.db") as other, other._database.writing() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER crash BEFORE INSERT ON quotes BEGIN SELECT RAISE(ABORT, 'the power failed'); END"
        )
    answer = client.post("/attestation", body)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
    device = registry.device(sensor.name)
    assert device is not None
    assert (device.verdict, device.trusted_at) == (None, None)
    assert registry.baseline(sensor.name) is None
    assert registry.observation(sensor.name) is None
    assert [row.event for row in registry.audit(sensor.name)] == ["first-seen"]
    with registry._database.writing() as connection:
        connection.exec_driver_sql("DROP TRIGGER crash")
    assert verdict(client.post("/attestation", body)) == (False, 1, "unattested")
    assert verdict(sensor.attest(client)) == (True, None, "attested")


def test_a_quote_is_judged_again_if_an_operator_changes_the_policy_meanwhile(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor.attest(client)
    sensor.values = changed_pcr(sensor.values, 4)
    kept, calls = Attestations.background, []

    def late(self: Attestations, name: str) -> Background:
        found = kept(self, name)
        if not calls:
            registry.groups.define("default", pcrs=[0, 7], by=BY, now=now())
        calls.append(found.group.pcrs)
        return found

    monkeypatch.setattr(Attestations, "background", late)
    assert verdict(sensor.attest(client)) == (True, None, "attested")
    assert calls == [(), (0, 7)]


def test_a_policy_that_never_rests_is_told(
    client: HttpsClient, sensor: AttestingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attestations, "record", lambda *_, **__: None)
    answer = sensor.attest(client)
    assert (answer.status, answer.body["error"]) == (503, "what the quote is judged by keeps changing")


def test_a_long_judgement_does_not_keep_others_waiting(
    make_backend: Make, ca: DeviceCa, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the event loop nor the threads that ask the database wait for a verifier."""
    slow, begun = threading.Event(), threading.Semaphore(0)
    kept = Attestations.background

    def wait(self: Attestations, name: str) -> Background:
        begun.release()
        slow.wait(20)
        return kept(self, name)

    monkeypatch.setattr(Attestations, "background", wait)
    backend = make_backend()
    sensors = [AttestingDevice(ca, f"sensor-{number}") for number in range(4)]
    clients = [connect(backend.port, each.identity) for each in sensors]
    bodies = [each.evidence(ask_nonce(client)) for each, client in zip(sensors, clients, strict=True)]
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(each.post, "/attestation", body) for each, body in zip(clients, bodies, strict=True)]
        begun.acquire()
        other = connect(backend.port, ca.device("sensor-9"))
        assert all(other.post("/telemetry", b"{}").status == 201 for _ in range(10))
        slow.set()
        assert [verdict(each.result()) for each in waiting] == [(True, None, "attested")] * 4


# the history


def test_twenty_quotes_of_a_device_are_kept(client: HttpsClient, sensor: AttestingDevice, registry: Registry) -> None:
    for _ in range(22):
        sensor.attest(client)
    rows = registry.quotes(sensor.name)
    assert len(rows) == 20
    assert [row.id for row in rows] == list(range(22, 2, -1))
    assert rows[0].attestation_key == sensor.ak.public.name.hex()


def test_a_state_that_flips_does_not_flood_the_audit_log(
    client: HttpsClient, sensor: AttestingDevice, registry: Registry, clock: Clock
) -> None:
    good, bad = sensor.values, changed_pcr(sensor.values, 0)
    for values in (good, bad) * 5:
        sensor.values = values
        sensor.attest(client)
    told = [row.event for row in reversed(registry.audit("sensor-17"))]
    assert told == ["first-seen", "baseline-learned", "attested", "failing", "attested", "failing", "attested"]
    clock.offset = timedelta(minutes=2)
    sensor.attest(client)
    newest = registry.audit("sensor-17")[0]
    assert (newest.event, newest.detail["check"]) == ("failing", 9)


def test_the_registry_and_the_telemetry_of_an_earlier_version_share_a_database(
    make_backend: Make, device: Identity, connect: Connect, tmp_path: Path
) -> None:
    """A database that has telemetry, but no registry yet, gets one."""
    from tpm_mtls_server.telemetry import TelemetryStore

    database = Database(f"sqlite:///{tmp_path}/telemetry.db")
    TelemetryStore(database).add("sensor-17", "{}", received=now())
    database.close()
    assert connect(make_backend().port, device).post("/telemetry", b"{}").body == {"id": 2}
