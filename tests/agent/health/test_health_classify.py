"""What follows from a check, and what others see of it: without a TPM."""

from __future__ import annotations

import os
import re
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from support.tpm_condition import WELL
from tpm_mtls.attestation.health import Caution, Check, Failure, HealthReport
from tpm_mtls.errors import IdentityError, StorageError, TpmMemoryError, TpmRefusedError, TpmUnavailableError
from tpm_mtls_agent.health import HEALTH, MAINTENANCE, METRICS, change_of, load_health, publish, status_line
from tpm_mtls_agent.health.classify import Result, Skipped, cautions, failures
from tpm_mtls_agent.health.metrics import as_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from tpm_mtls.attestation.health import Condition
    from tpm_mtls.errors import TpmMtlsError

HEALTHY = HealthReport(
    time=1_795_312_800,
    checks=(Check(name="wrap", outcome="passed", seconds=0.25), Check(name="quote", outcome="skipped")),
    condition=WELL,
)
ENC = Failure(kind="EncFailure", reason="it does not wrap", hint="replace it")
SIGN = Failure(kind="SignFailure", reason="it does not sign", hint="boot again")
GONE = TpmUnavailableError("no TPM answers", hint="is it there?", tcti="device:/dev/tpmrm0")
FULL = TpmMemoryError("the slots are exhausted", hint="free them", rc=0x902)


def results(**errors: TpmMtlsError) -> list[Result]:
    return [Result(name, 0.1, errors.get(name)) for name in ("wrap", "quote", "sign")]  # type: ignore[arg-type]  # CheckName


def kinds(*found: Failure | Caution) -> list[str]:
    return [each.kind for each in found]


# classes of failures


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({}, []),
        ({"wrap": FULL}, ["EncFailure"]),
        ({"quote": FULL}, ["QuoteFailure"]),
        ({"sign": FULL}, ["SignFailure"]),
        ({"wrap": FULL, "quote": FULL, "sign": FULL}, ["EncFailure", "QuoteFailure", "SignFailure"]),
        ({"wrap": GONE}, ["TpmUnavailable"]),
        ({"wrap": GONE, "quote": GONE, "sign": FULL}, ["TpmUnavailable", "SignFailure"]),
    ],
)
def test_each_failed_check_is_a_class_of_its_own_and_a_silent_tpm_another(
    errors: dict[str, TpmMtlsError], expected: list[str]
) -> None:
    assert kinds(*failures(results(**errors), WELL, None)) == expected


def test_a_silent_tpm_is_told_once_whoever_found_out() -> None:
    (failure,) = failures(results(wrap=GONE, quote=GONE, sign=GONE), None, GONE)
    assert (failure.kind, failure.reason, failure.hint) == ("TpmUnavailable", "no TPM answers", "is it there?")


def test_a_failed_self_test_is_a_failure_beside_the_others() -> None:
    failed = replace(WELL, self_test="failed")
    assert kinds(*failures(results(), failed, None)) == ["SelfTestFailure"]
    assert kinds(*failures(results(wrap=FULL), failed, None)) == ["SelfTestFailure", "EncFailure"]
    assert kinds(*failures(results(), replace(WELL, self_test="pending"), None)) == []


def test_failure_mode_is_a_failed_self_test_and_no_warning() -> None:
    trouble = TpmRefusedError("the TPM is in failure mode", hint="power it off", rc=0x101)
    assert kinds(*failures(results(), None, trouble)) == ["SelfTestFailure"]
    assert cautions(results(), None, trouble, raw=True) == ()


# warnings


def warned(condition: Condition, *, raw: bool = True) -> list[str]:
    return kinds(*cautions(results(), condition, None, raw=raw))


def test_a_healthy_tpm_is_no_reason_for_a_warning() -> None:
    assert warned(WELL) == []


def test_nv_memory_is_nearly_full_below_two_places() -> None:
    assert warned(replace(WELL, persistent_available=1)) == ["NvNearlyFull"]
    assert warned(replace(WELL, nv_counters_available=0)) == ["NvNearlyFull"]
    assert warned(replace(WELL, persistent_available=2, nv_counters_available=2)) == []


def test_lockout_and_the_way_there_are_warnings() -> None:
    assert warned(replace(WELL, lockout_counter=1)) == ["LockoutCounter"]
    (caution,) = cautions(results(), replace(WELL, lockout_counter=32, locked_out=True), None, raw=False)
    assert (caution.kind, "32 of 32" in caution.text) == ("Lockout", True)
    assert caution.hint == (
        "find out who tries, or whether power was lost without a TPM shutdown, which counts as one; one is forgotten "
        "every 7200 s, or as the TPM's owner: tpm2_dictionarylockout --clear-lockout"
    )


def test_what_is_left_loaded_matters_only_without_a_resource_manager() -> None:
    leaked = replace(WELL, transient_loaded=2, sessions_active=1)
    assert warned(leaked) == ["LeakedObjects", "LeakedSessions"]
    assert warned(leaked, raw=False) == []


def test_known_bad_firmware_is_named_with_its_fault() -> None:
    (caution,) = cautions(results(), replace(WELL, firmware="1.3.2.8"), None, raw=False)
    assert caution.kind == "KnownBadFirmware"
    assert "CVE-2023-1017" in caution.text
    assert "Nuvoton SA-003" in caution.hint


def test_a_tpm_that_does_not_say_how_it_is_is_a_warning_and_a_silent_one_a_failure() -> None:
    trouble = TpmRefusedError("it does not say", hint="power it off", rc=0)
    assert kinds(*cautions(results(), None, trouble, raw=True)) == ["CapabilitiesUnreadable"]
    assert failures(results(), None, trouble) == ()
    assert cautions(results(), None, GONE, raw=True) == ()


def test_a_skipped_check_may_have_a_warning() -> None:
    caution = Caution(kind="SignUnchecked", text="unknown", hint="give it")
    skipped = [Result("quote", 0.1, skipped=Skipped()), Result("sign", 0.1, skipped=Skipped(caution))]
    assert cautions(skipped, WELL, None, raw=True) == (caution,)
    assert [each.as_check() for each in skipped] == [
        Check(name="quote", outcome="skipped"),
        Check(name="sign", outcome="skipped"),
    ]


# words


def test_the_status_line_says_what_a_person_wants_to_know_first() -> None:
    caution = Caution(kind="Lockout", text="locked", hint="wait")
    assert status_line(HEALTHY) == "TPM healthy"
    assert status_line(replace(HEALTHY, warnings=(caution,))) == "TPM healthy, 1 warning"
    assert status_line(replace(HEALTHY, warnings=(caution, caution))) == "TPM healthy, 2 warnings"
    assert (
        status_line(replace(HEALTHY, failures=(ENC, SIGN)))
        == "maintenance mode, EncFailure, SignFailure: it does not wrap"
    )
    assert status_line(HealthReport(time=0, is_tpm=False)) == "no TPM: the identity is a software key"


def test_a_change_is_told_once() -> None:
    failing, worse = replace(HEALTHY, failures=(ENC,)), replace(HEALTHY, failures=(ENC, SIGN))
    assert change_of(None, HEALTHY) is None
    assert change_of(HEALTHY, HEALTHY) is None
    assert change_of(None, failing) == "maintenance mode begins: EncFailure: it does not wrap; replace it"
    assert change_of(failing, failing) is None
    assert change_of(failing, worse) == "maintenance mode goes on: SignFailure: it does not sign; boot again"
    assert change_of(worse, failing) == "maintenance mode goes on: SignFailure mended"
    assert change_of(failing, HEALTHY) == "maintenance mode ends: EncFailure mended"


# publication


def test_maintenance_mode_goes_on_and_off_by_a_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    publish(run, HEALTHY)
    assert not (run / MAINTENANCE).exists()
    publish(run, replace(HEALTHY, failures=(ENC, SIGN)))
    assert (run / MAINTENANCE).read_text() == "EncFailure: it does not wrap\nSignFailure: it does not sign\n"
    publish(run, HEALTHY)
    assert not (run / MAINTENANCE).exists()


def test_the_files_are_for_all_to_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        publish(tmp_path / "run", replace(HEALTHY, failures=(ENC,)))
    finally:
        os.umask(before)
    for name in (HEALTH, METRICS, MAINTENANCE):
        assert stat.S_IMODE((tmp_path / "run" / name).stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755


def test_a_report_is_read_again(tmp_path: Path) -> None:
    assert load_health(tmp_path) is None
    publish(tmp_path, HEALTHY)
    assert load_health(tmp_path) == HEALTHY
    (tmp_path / HEALTH).write_text("{}")
    with pytest.raises(IdentityError, match=r"health\.json is damaged"):
        load_health(tmp_path)


def test_maintenance_is_right_before_the_report_is_new(tmp_path: Path) -> None:
    """Who waits for a newer report must not see the old reasons with it."""
    publish(tmp_path, HEALTHY)
    (tmp_path / METRICS).unlink()
    (tmp_path / METRICS).mkdir()
    with pytest.raises(StorageError):
        publish(tmp_path, replace(HEALTHY, time=HEALTHY.time + 1, failures=(ENC,)))
    assert (tmp_path / MAINTENANCE).exists()
    assert load_health(tmp_path) == HEALTHY
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEALTH, METRICS, MAINTENANCE]


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        publish(tmp_path / "run", HEALTHY)
        assert listening.recv(1000) == b"STATUS=TPM healthy"
        publish(tmp_path / "run", replace(HEALTHY, failures=(ENC,)), doing="serving /run/tpmd.sock")
        assert listening.recv(1000) == (
            b"STATUS=serving /run/tpmd.sock; maintenance mode, EncFailure: it does not wrap"
        )


# metrics

SAMPLE = re.compile(r'([a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\[\\"n])*")*\})? (\S+)')


def samples(report: HealthReport) -> dict[str, float]:
    """The samples, by the grammar of the text format: HELP and TYPE once before each metric's samples."""
    text = as_metrics(report)
    assert text.endswith("\n")
    found: dict[str, float] = {}
    described: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            described.append(line.split(" ")[2])
        elif line.startswith("# TYPE "):
            assert line.split(" ")[2:] == [described[-1], "gauge"]
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] == described[-1]
            assert match[1] + (match[2] or "") not in found
            found[match[1] + (match[2] or "")] = float(match[3])
    assert len(set(described)) == len(described)
    return found


def test_the_metrics_say_what_the_report_says() -> None:
    report = replace(
        HEALTHY,
        failures=(ENC,),
        warnings=(Caution(kind="KnownBadFirmware", text="", hint=""),) * 2,
        checks=(Check(name="wrap", outcome="failed", seconds=0.25), Check(name="quote", outcome="skipped")),
    )
    found = samples(report)
    assert found["tpm_mtls_health_time_seconds"] == HEALTHY.time
    assert found["tpm_mtls_maintenance"] == 1
    assert found['tpm_mtls_health_failure{kind="EncFailure"}'] == 1
    assert found['tpm_mtls_health_failure{kind="SignFailure"}'] == 0
    assert found['tpm_mtls_health_warning{kind="KnownBadFirmware"}'] == 2
    assert found['tpm_mtls_check_passed{check="wrap"}'] == 0
    assert found['tpm_mtls_check_seconds{check="wrap"}'] == 0.25
    assert 'tpm_mtls_check_passed{check="quote"}' not in found
    assert found['tpm_mtls_tpm_info{vendor="NTC",firmware="7.2.5.0",self_test="passed"}'] == 1
    assert found["tpm_mtls_tpm_lockout_limit"] == 32


def test_a_tpm_s_own_words_cannot_break_the_metrics() -> None:
    evil = replace(WELL, vendor='a"\\\n} 1', firmware="x{")
    assert (
        samples(replace(HEALTHY, condition=evil))[
            'tpm_mtls_tpm_info{vendor="a\\"\\\\\\n} 1",firmware="x{",self_test="passed"}'
        ]
        == 1
    )


def test_without_a_tpm_there_are_no_metrics_of_one() -> None:
    found = samples(HealthReport(time=7, is_tpm=False))
    assert found["tpm_mtls_is_tpm"] == 0
    assert not any("check_" in name or "tpm_mtls_tpm_" in name for name in found)
