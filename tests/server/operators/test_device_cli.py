"""``tpm-mtls server device``: what an operator on the server's machine types and reads."""

from __future__ import annotations

import base64
import json
import sqlite3
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from cryptography import x509

from support.attestation import public_area
from support.attesting_device import AttestingDevice, boot_of
from support.quotes import software_key
from support.terminal import on_a_terminal
from tpm_mtls.attestation.health import Caution, Failure, HealthReport, encode_health
from tpm_mtls.cli import run
from tpm_mtls_server.operators.cli_common import local_user

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.backend import BackendThread
    from support.device_ca import DeviceCa
    from support.https import HttpsClient
    from tpm_mtls.identity import Identity

    Connect: TypeAlias = Callable[[int, Identity], HttpsClient]
    Command: TypeAlias = Callable[..., Any]

OLD, NEW = boot_of("vmlinuz-6.12"), boot_of("vmlinuz-6.18")


@pytest.fixture
def device_cli(server_command: Callable[[str], Command]) -> Command:
    return server_command("device")


def test_without_devices_the_list_is_empty(backend: BackendThread, device_cli: Command) -> None:
    assert backend.port
    assert device_cli("list") == {"devices": []}
    assert device_cli("list", text=True) == ""


def test_devices_are_listed_with_state_and_health(
    ca: DeviceCa, backend: BackendThread, machine: AttestingDevice, connect: Connect, device_cli: Command
) -> None:
    machine.attest(backend.port, OLD)
    machine.attest(backend.port, NEW)
    silent = ca.device("sensor-18")
    report = HealthReport(time=1, failures=(Failure(kind="SignFailure", reason="r", hint="h"),))
    connect(backend.port, silent).post("/health", encode_health(report))
    rows = [line.split("\t") for line in device_cli("list", text=True).splitlines()]
    assert [row[:5] for row in rows] == [
        ["sensor-17", "failing", "default", "failed check 9 (policy)", "-"],
        ["sensor-18", "unattested", "default", "none yet", "SignFailure"],
    ]
    assert [each["name"] for each in device_cli("list", "--state", "failing")["devices"]] == ["sensor-17"]
    assert device_cli("list", "--group", "other") == {"devices": []}


def test_a_long_list_is_whole(
    backend: BackendThread,
    database: str,
    device_cli: Command,
    monkeypatch: pytest.MonkeyPatch,
    connect: Connect,
    ca: DeviceCa,
) -> None:
    assert database
    monkeypatch.setattr("tpm_mtls_server.registry.registry.PAGE", 2)
    for number in range(5):
        connect(backend.port, ca.device(f"sensor-{number}")).get("/whoami")
    assert len(device_cli("list")["devices"]) == 5


def test_on_a_terminal_the_list_is_a_table(backend: BackendThread, machine: AttestingDevice, database: str) -> None:
    machine.attest(backend.port, OLD)
    command = [sys.executable, "-m", "tpm_mtls", "server", "device", "list", "--database", database]
    title, *_, row = [line for line in on_a_terminal(command) if line.strip()]
    assert title.split() == ["device", "state", "group", "last", "quote", "health", "last", "seen"]
    assert row.split()[:4] == ["sensor-17", "attested", "default", "passed"]
    narrow = on_a_terminal(command, columns=60)
    assert narrow[:4] == ["device:     sensor-17", "state:      attested", "group:      default", "last quote: passed"]
    assert on_a_terminal([*command, "--state", "failing"]) == ["no such devices"]


def test_a_mismatch_is_explained_as_a_person_would_want_it(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command
) -> None:
    """Which PCRs; which entries of the event log appeared, vanished or changed; what to do."""
    machine.attest(backend.port, OLD)
    machine.attest(backend.port, NEW)
    boot = device_cli("show", "sensor-17")["seen"]["boot"]
    text = device_cli("show", "sensor-17", text=True)
    assert text.startswith("sensor-17: failing\n")
    assert "failed check 9 (policy)" in text
    assert "PCR 4 (sha256), boot loader, differs" in text
    assert "PCR 9 (sha256), boot loader's files, differs" in text
    assert "kernel changed: /vmlinuz-6.12 → /vmlinuz-6.18" in text
    assert "PCR 8" not in text
    assert f"if it should boot that: tpm-mtls server device approve sensor-17 --boot {boot}\n" in text
    assert "quarantine sensor-17 --reason TEXT" in text
    assert "baseline:     learned" in text


def test_an_approval_is_by_somebody_and_of_one_boot(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command
) -> None:
    machine.attest(backend.port, OLD)
    machine.attest(backend.port, NEW)
    boot = device_cli("show", "sensor-17")["seen"]["boot"]
    refused = device_cli("approve", "sensor-17", "--boot", "00" * 32, status=10)
    assert f"has shown another boot since: its PCR digest is {boot}" in refused
    assert device_cli("approve", "sensor-17", "--boot", boot, "--by", "alice")["boot"] == boot
    text = device_cli("show", "sensor-17", text=True)
    assert "baseline:     approved by alice" in text
    assert "does not count" not in text
    assert "that boot is approved by now" in text
    assert machine.attest(backend.port, NEW)["trusted"]
    text = device_cli("show", "sensor-17", text=True)
    assert "what differs" not in text
    assert " failing: check 9, reason PCRs 4 (boot loader)" in text, "the history"


def test_an_older_boot_is_not_what_an_approval_is_offered_for(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command
) -> None:
    """A quote that fails another check than the policy shows nothing that could be approved."""
    machine.attest(backend.port, OLD)
    machine.resets = -1
    assert machine.attest(backend.port, OLD)["check"] == 7
    text = device_cli("show", "sensor-17", text=True)
    assert "failed check 7 (clock)" in text
    assert "if it should boot that" not in text
    assert "if you know why the clock of its TPM went back: tpm-mtls server device approve sensor-17\n" in text
    device_cli("approve", "sensor-17")
    assert machine.attest(backend.port, OLD)["trusted"], "its clock starts anew"


def test_a_baseline_that_does_not_count_is_said_so(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command, database: str
) -> None:
    machine.attest(backend.port, OLD)
    for mode in ("approve", "values", "signed"):
        assert run(["server", "group", "set", "default", "--mode", mode, "--database", database]) == 0
        assert "; it does not count in this group" in device_cli("show", "sensor-17", text=True)


def test_where_an_operator_must_approve_first_the_device_waits(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command, database: str, tmp_path: Path
) -> None:
    assert run(["server", "group", "set", "default", "--mode", "approve", "--database", database]) == 0
    assert machine.attest(backend.port, OLD)["state"] == "pending"
    assert "\twaits for approval\t" in device_cli("list", text=True).splitlines()[-1]
    log = tmp_path / "seen.log"
    text = device_cli("show", "sensor-17", "--save-log", str(log), text=True)
    assert "if it should boot that" in text
    assert log.read_bytes() == OLD.log
    device_cli("approve", "sensor-17")
    assert machine.attest(backend.port, OLD)["trusted"]


def test_a_log_that_was_never_shown_cannot_be_saved(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command, tmp_path: Path
) -> None:
    machine.attest(backend.port, OLD, event_log=None)
    assert "has shown no event log" in device_cli("show", "sensor-17", "--save-log", f"{tmp_path}/x", status=10)
    assert not (tmp_path / "x").exists()


def test_a_device_is_quarantined_and_released(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command
) -> None:
    machine.attest(backend.port, OLD)
    assert "missing option '--reason'" in device_cli("quarantine", "sensor-17", status=2)
    assert device_cli("quarantine", "sensor-17", "--reason", "stolen")["state"] == "quarantined"
    text = device_cli("show", "sensor-17", text=True)
    assert "stolen" in text
    assert "to let it in again: tpm-mtls server device release sensor-17" in text
    assert "quarantined by local:" in text
    assert "is quarantined already" in device_cli("quarantine", "sensor-17", "--reason", "again", status=10)
    assert device_cli("release", "sensor-17", text=True) == "sensor-17 is released: attested\n"
    assert "is not quarantined" in device_cli("release", "sensor-17", status=10)


def test_another_tpm_is_told_and_taken_only_by_an_operator(
    ca: DeviceCa, backend: BackendThread, machine: AttestingDevice, connect: Connect, device_cli: Command
) -> None:
    machine.attest(backend.port, OLD)
    other = AttestingDevice(ca, "other").tpm
    replaced = ca.device("sensor-17", names=[x509.DNSName("sensor-17"), *other.names()])
    assert connect(backend.port, replaced).get("/whoami").status == 403
    text = device_cli("show", "sensor-17", text=True)
    assert f"a certificate of this name with another TPM, {other}" in text
    assert "if it was given another TPM on purpose: tpm-mtls server device release sensor-17" in text
    assert device_cli("show", "sensor-17")["refused_tpm"]["tpm"] == str(other)
    device_cli("release", "sensor-17")
    assert connect(backend.port, replaced).get("/whoami").status == 200


def test_a_device_that_comes_without_its_tpm_is_told(
    ca: DeviceCa, backend: BackendThread, machine: AttestingDevice, connect: Connect, device_cli: Command
) -> None:
    machine.attest(backend.port, OLD)
    assert connect(backend.port, ca.device("sensor-17")).get("/whoami").status == 403
    text = device_cli("show", "sensor-17", text=True)
    assert "a certificate of this name without a TPM" in text
    assert "device release" not in text


def test_a_device_is_moved_to_a_group(
    backend: BackendThread, machine: AttestingDevice, device_cli: Command, database: str
) -> None:
    machine.attest(backend.port, OLD)
    assert "there is no group 'gateways'" in device_cli("move", "sensor-17", "--group", "gateways", status=10)
    assert run(["server", "group", "set", "gateways", "--pcrs", "0,2", "--database", database]) == 0
    assert "is in the group gateways" in device_cli("move", "sensor-17", "--group", "gateways", text=True)
    text = device_cli("show", "sensor-17", text=True)
    assert "gateways (held against its own first quote, PCRs 0, 2 only)" in text
    assert machine.attest(backend.port, NEW)["trusted"], "PCR 4 does not count there"


def test_health_is_shown_with_what_to_do(
    backend: BackendThread, device: Identity, connect: Connect, device_cli: Command
) -> None:
    report = HealthReport(
        time=1,
        failures=(Failure(kind="EncFailure", reason="what was sealed \x1b[31mdid not come back", hint="replace it"),),
        warnings=(Caution(kind="LockoutCounter", text="3 of 32", hint="who guesses?"),),
    )
    client = connect(backend.port, device)
    client.post("/health", encode_health(report))
    text = device_cli("show", "sensor-17", text=True)
    assert "EncFailure: what was sealed ?[31mdid not come back; replace it" in text
    assert "LockoutCounter: 3 of 32; who guesses?" in text
    assert "let it send a quote; on the device: tpm-mtls agent check" in text
    client.post("/health", encode_health(HealthReport(time=2)))
    assert device_cli("list", text=True).split("\t")[4] == "good"
    warned = HealthReport(time=2, warnings=report.warnings)
    client.post("/health", encode_health(warned))
    assert device_cli("list", text=True).split("\t")[4] == "good, 1 warnings"


def test_a_health_report_of_another_version_is_unreadable_and_no_traceback(
    backend: BackendThread, device: Identity, connect: Connect, device_cli: Command, tmp_path: Path
) -> None:
    connect(backend.port, device).post("/health", encode_health(HealthReport(time=2)))
    with sqlite3.connect(tmp_path / "telemetry.db") as connection:
        connection.execute("UPDATE devices SET health = '{\"format\":2}'")
    connection.close()
    assert device_cli("list", text=True).split("\t")[4] == "unreadable"
    assert "unreadable" in device_cli("show", "sensor-17", text=True)
    assert device_cli("show", "sensor-17")["health_report"] is None


def test_an_unknown_device_or_database_is_said_so(backend: BackendThread, device_cli: Command, tmp_path: Path) -> None:
    assert backend.port
    assert "no device 'sensor-99' ever came" in device_cli("show", "sensor-99", status=10)
    assert "no device 'sensor-99' ever came" in device_cli("approve", "sensor-99", status=10)
    missing = tmp_path / "missing.db"
    assert run(["server", "device", "list", "--database", f"sqlite:///{missing}"]) == 10
    assert not missing.exists(), "nothing is made where somebody only looks"


def test_an_attestation_key_without_a_certificate_counts_when_an_operator_enrolled_it(
    ca: DeviceCa, backend: BackendThread, device_cli: Command, tmp_path: Path
) -> None:
    machine = AttestingDevice(ca, certified=False)
    assert machine.attest(backend.port, OLD)["check"] == 2
    public = machine.ak.public
    file = tmp_path / "ak.pub"
    file.write_bytes(len(public.data).to_bytes(2) + public.data)
    answer = device_cli("enroll-key", "sensor-17", "--key", str(file), "--by", "alice")
    assert answer == {"device": "sensor-17", "key": public.name.hex(), "enrolled": True}
    assert machine.attest(backend.port, OLD)["trusted"]
    assert f"enrolled key: {public.name.hex()}" in device_cli("show", "sensor-17", text=True)
    assert "is recorded for sensor-17" in device_cli("enroll-key", "sensor-18", "--key", str(file), status=10)
    device_cli("enroll-key", "sensor-17", "--key-name", public.name.hex(), "--withdraw")
    assert machine.attest(backend.port, OLD)["check"] == 2


def test_a_key_is_taken_from_each_of_its_files(backend: BackendThread, device_cli: Command, tmp_path: Path) -> None:
    assert backend.port
    public = software_key().public
    for number, content in enumerate(
        (public.data, json.dumps({"format": 1, "public": base64.b64encode(public.data).decode()}).encode())
    ):
        file = tmp_path / f"key{number}"
        file.write_bytes(content)
        assert device_cli("enroll-key", "sensor-17", "--key", str(file))["key"] == public.name.hex()
        device_cli("enroll-key", "sensor-17", "--key", str(file), "--withdraw")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key's public area"),
        (b"{", "holds no key's public area"),
        (b'{"public":"AA=="}', "holds no key's public area"),
        (b"\x00\x04\x00\x23\x00\x0b", "holds no key's public area"),
        (bytes(20_000), "larger than 16384 bytes"),
    ],
)
def test_a_file_without_a_key_is_refused(
    content: bytes, message: str, backend: BackendThread, device_cli: Command, tmp_path: Path
) -> None:
    assert backend.port
    file = tmp_path / "key"
    file.write_bytes(content)
    assert message in device_cli("enroll-key", "sensor-17", "--key", str(file), status=5)


def test_a_key_that_signs_anything_is_no_attestation_key(
    backend: BackendThread, device_cli: Command, tmp_path: Path
) -> None:
    assert backend.port
    file = tmp_path / "key"
    area = bytearray(public_area(software_key().key, "ecdsa-sha256"))
    restricted = 1 << 16
    attributes = int.from_bytes(area[4:8]) & ~restricted
    area[4:8] = attributes.to_bytes(4)
    file.write_bytes(area)
    assert "restricted" in device_cli("enroll-key", "sensor-17", "--key", str(file), status=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which key?"),
        (["--key", "ak.pub", "--key-name", "000b" + "00" * 32], "which key?"),
        (["--key-name", "000b"], "not a key's Name"),
        (["--key-name", "000b" + "0A" * 32], "not a key's Name"),
    ],
)
def test_one_key_is_named_rightly(options: list[str], message: str, device_cli: Command) -> None:
    assert message in device_cli("enroll-key", "sensor-17", *options, status=2)


@pytest.mark.parametrize(
    ("environment", "uid", "effective", "name"),
    [
        ({}, 0, 0, "local:root"),
        ({"SUDO_USER": "alice"}, 0, 0, "local:alice"),
        ({"SUDO_USER": "alice"}, 54_321, 54_321, "local:54321"),
        ({"SUDO_USER": "a\x1bb"}, 0, 0, "local:a?b"),
    ],
)
def test_whoever_is_logged_in_decides(environment: dict[str, str], uid: int, effective: int, name: str) -> None:
    assert local_user(environment, uid=uid, effective=effective) == name


@pytest.mark.parametrize("verb", ["list", "show", "approve", "quarantine", "release", "move", "enroll-key"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["server", "device", verb, "--help"]) == 0
    assert f"Example: tpm-mtls server device {verb}" in capsys.readouterr().out
