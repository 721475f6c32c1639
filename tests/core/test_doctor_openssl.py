"""OpenSSL, the device's key and the servers: tried in this process, and judged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from support.healthy_device import HANDLE
from support.https_server import HttpsServer, fixed, http
from support.patient import NOBODY_LISTENS, Patient
from support.policies import extend, pcr_policy
from tpm_mtls.authorization import Secret
from tpm_mtls.doctor import children, openssl_report
from tpm_mtls.doctor.children import OPENSSL, TPM, ask_child
from tpm_mtls.doctor.findings import Failed
from tpm_mtls.doctor.openssl_report import OpensslJob, OpensslReport, PeerReport, try_openssl
from tpm_mtls.doctor.openssl_rules import judge_key, judge_openssl, judge_peer
from tpm_mtls.doctor.servers import backend_peer, ca_peer
from tpm_mtls.doctor.tpm_report import TpmJob, TpmReport
from tpm_mtls.errors import OpensslLinkageError, TpmMtlsError, TpmUnavailableError, UsageError
from tpm_mtls.identity import TRUST
from tpm_mtls.openssl import library

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm
    from tpm_mtls.doctor.findings import Finding

WELL = OpensslReport(python="3.11.7 (/usr/bin/python3)", openssl="OpenSSL 3.0.19", modules="/m", provider="1.3.0")
CA, BACKEND = ca_peer("https://ca.example"), backend_peer("https://backend.example:9443/whoami")

UNASKED = ca_peer("https://ca.example", named=False)


def report(**changes: Any) -> OpensslReport:  # noqa: ANN401 - any of its fields
    return msgspec.structs.replace(WELL, **changes)


def error(kind: str, message: str = "m") -> Failed:
    return Failed(kind=kind, message=message, hint="h")


UNCERTIFIED = error("HandshakeError", "the TLS connection to the server failed: tlsv13 alert certificate required")


def job(patient: Patient, **changes: Any) -> OpensslJob:  # noqa: ANN401 - any of its fields
    found = OpensslJob(tcti=patient.device.tpm.tcti, folder=str(patient.folder), trust=str(patient.folder / TRUST))
    return msgspec.structs.replace(found, **changes)


def unwell(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.level != "ok"]


# the rules


def test_a_provider_that_serves_threads_is_well() -> None:
    assert unwell([*judge_openssl(report()), *judge_key(report(key="signed"))]) == []
    assert unwell(judge_openssl(report(provider=""))) == []  # no TPM, so not tried


@pytest.mark.parametrize(
    ("changes", "level", "check", "text"),
    [
        ({"linkage": error("OpensslLinkageError")}, "problem", "openssl.linkage", "m"),
        ({"provider_error": error("ProviderTooOldError")}, "problem", "openssl.provider", "^m"),
        ({"provider_error": error("TpmRefusedError")}, "problem", "openssl.provider", "does not reach the TPM: m"),
        ({"provider": "1.2.0"}, "warning", "openssl.provider", "1.2.0: one thread at a time"),
        ({"configuration": "/none"}, "warning", "openssl.configuration", "/none, which is not there"),
        ({"unusable": "no ciphers"}, "problem", "openssl.configuration", r"the system's openssl.cnf activates no"),
        (
            {"unusable": "no ciphers", "configuration": "/x"},
            "problem",
            "openssl.configuration",
            r"no TLS connection \(no ciphers\): \$OPENSSL_CONF, /x, activates no default provider",
        ),
        ({"key_error": error("HandleNotFoundError")}, "problem", "identity.key", "m"),
        ({"key_error": error("ForeignKeyError")}, "problem", "identity.key", "m"),
        ({"key_error": error("AuthorizationError", "wrong")}, "problem", "identity.key", "wrong"),
        ({"key_error": error("CertificateMismatchError")}, "problem", "identity.certificate", "m"),
    ],
)
def test_each_fault_is_named(changes: dict[str, Any], level: str, check: str, text: str) -> None:
    said = report(**changes)
    (found,) = unwell([*judge_openssl(said), *judge_key(said)])
    assert (found.level, found.check) == (level, check)
    assert re.search(text, found.text), found


@pytest.mark.parametrize(
    "said", [error("CertificateExpiredError"), error("CertificateNotYetValidError"), error("IdentityError")]
)
def test_what_others_say_or_what_is_no_fault_is_no_problem(said: Failed) -> None:
    assert unwell(list(judge_key(report(key_error=said)))) == []
    assert unwell(judge_openssl(report(configuration="/there", configuration_exists=True))) == []


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        (PeerReport(peer=CA, status=200), "ok", "the CA at https://ca.example:443 answered"),
        (PeerReport(peer=BACKEND, status=404), "ok", "the backend at https://backend.example:9443 answered"),
        (PeerReport(peer=CA, status=302), "problem", "HTTP 302"),
        (PeerReport(peer=BACKEND, status=302), "ok", "answered"),
        (PeerReport(peer=CA, status=400), "problem", "HTTP 400"),
        (PeerReport(peer=BACKEND, status=500), "problem", "HTTP 500"),
        (PeerReport(peer=BACKEND, status=401), "problem", "refuses this device (HTTP 401)"),
        (PeerReport(peer=BACKEND, status=403, reason="revoked"), "problem", "refuses this device (HTTP 403: revoked)"),
        (PeerReport(peer=CA, error=error("StorageError", "no file")), "problem", "nobody to trust: no file"),
        (PeerReport(peer=UNASKED, error=error("PemError")), "warning", "nobody to trust: m"),
        (PeerReport(peer=CA, error=UNCERTIFIED), "problem", "no EST server does"),
        (PeerReport(peer=BACKEND, error=UNCERTIFIED), "warning", "it wants a device's, and there is none"),
        (PeerReport(peer=CA, error=error("PeerUnreachableError")), "problem", "m"),
    ],
)
def test_a_servers_answer_is_judged(answer: PeerReport, level: str, text: str) -> None:
    found = judge_peer(answer)
    assert found.level == level
    assert text in found.text


def test_a_ca_that_nobody_asked_for_may_be_away_but_not_be_another() -> None:
    away = judge_peer(PeerReport(peer=UNASKED, error=error("PeerUnreachableError")))
    assert away.level == "warning"
    assert "when the certificate is renewed" in away.remedy
    assert judge_peer(PeerReport(peer=UNASKED, error=error("PeerUntrustedError"))).level == "problem"


# what works


def test_a_device_key_signs_and_servers_are_reached(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path)
    with HttpsServer(patient.server_context(), fixed(http(200))) as server:
        peers = (ca_peer(server.url("")), backend_peer(server.url()), ca_peer(NOBODY_LISTENS))
        found = try_openssl(job(patient, peers=peers))
    assert (found.provider, found.key, found.key_error) == ("1.3.0", "signed", None)
    assert [each.status for each in found.peers] == [200, 200, 0]
    assert [each.device for each in server.requests] == [None, "sensor-17"]
    assert found.peers[2].error is not None
    assert found.peers[2].error.kind == "PeerUnreachableError"


def test_a_refusal_is_told_in_the_servers_own_words_on_one_line(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path)
    refusal = http(403, json.dumps({"error": "certificate\nrevoked" + 300 * "!"}).encode())
    with HttpsServer(patient.server_context(), fixed(refusal)) as server:
        found = try_openssl(job(patient, peers=(backend_peer(server.url()),)))
    assert [(each.status, each.reason) for each in found.peers] == [(403, f"certificate revoked{181 * '!'}")]


def test_a_key_that_is_gone_does_not_sign(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{HANDLE:#x}")
    found = try_openssl(job(patient))
    assert found.key_error is not None
    assert found.key_error.kind == "HandleNotFoundError"


def test_a_key_whose_policy_does_not_hold_does_not_sign(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path, policy=[pcr_policy()])
    assert try_openssl(job(patient)).key == "signed"
    extend(tpm)
    found = try_openssl(job(patient))
    assert found.key_error is not None
    assert found.key_error.kind == "PolicyRefusedError"


def test_a_key_with_an_authorization_value_is_not_tried_because_that_would_count(
    tpm: SimulatedTpm, tmp_path: Path
) -> None:
    patient = Patient(tpm, tmp_path, authorization=Secret(b"value"))
    found = patient.examine(peers=(backend_peer(NOBODY_LISTENS),))
    assert found.openssl is not None
    assert found.openssl.key == "protected"
    assert found.problems == []
    assert {each.check: each.text for each in found.findings}["tpm.lockout"] == "no wrong authorization value counts"
    assert "was not tried" in found.findings[-1].text
    tried = try_openssl(job(patient, protected=True, peers=(backend_peer(NOBODY_LISTENS),)))
    assert (tried.key, tried.peers[0].untried) == ("protected", True)
    assert patient.examine().tpm.condition.lockout_counter == 0  # type: ignore[union-attr]  # it answered


def test_without_a_tpm_a_tpm_key_is_not_tried_and_a_software_key_is(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path)
    found = try_openssl(job(patient, tcti=None))
    assert (found.provider, found.key, found.key_error) == ("", "untried", None)
    assert found.modules
    patient.make_software()
    assert try_openssl(job(patient, tcti=None)).key == "signed"


def test_without_a_provider_or_an_identity_no_key_is_tried(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(tpm, tmp_path)
    monkeypatch.setenv("OPENSSL_CONF", str(tmp_path / "none.cnf"))
    assert try_openssl(job(patient, folder="")).key == "untried"
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    found = try_openssl(job(patient))
    assert (found.key, found.key_error) == ("untried", None)
    assert found.provider_error is not None
    assert found.provider_error.kind == "ProviderMissingError"
    assert (found.configuration, found.configuration_exists) == (str(tmp_path / "none.cnf"), False)


def test_a_python_with_its_own_openssl_is_recognised(
    tpm: SimulatedTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Patient(tpm, tmp_path)

    def unreachable() -> None:
        library.bind(None, expected="OpenSSL 9.9")

    monkeypatch.setattr(library, "openssl", unreachable)
    found = try_openssl(job(patient))
    assert found.linkage is not None
    assert found.linkage.kind == OpensslLinkageError.__name__
    assert found.key == "untried"


# the children


def test_a_child_answers_what_this_process_would(tpm: SimulatedTpm, tmp_path: Path) -> None:
    patient = Patient(tpm, tmp_path)
    found = ask_child(OPENSSL, job(patient), OpensslReport, patience=60)
    assert (found.key, found.provider) == ("signed", "1.3.0")
    seen = ask_child(TPM, TpmJob(tcti=tpm.tcti, folder=""), TpmReport, patience=60)
    assert seen.condition is not None


def test_a_child_that_is_late_is_ended_and_one_that_breaks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = TpmJob(tcti="cmd:exec sleep 60", folder="")
    with pytest.raises(TpmUnavailableError, match=r"does not answer within 0\.2 seconds") as refused:
        ask_child(TPM, late, TpmReport, patience=0.2)
    assert "another program hold it" in refused.value.hint
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "late.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(children, "OPENSSL", "late")
    with pytest.raises(TpmUnavailableError, match="the device's key and the servers did not end") as refused:
        ask_child("late", late, TpmReport, patience=0.2)
    assert "name service" in refused.value.hint
    with pytest.raises(TpmMtlsError, match=r"no_such_program ended without an answer \(status 1\): .*No module named"):
        ask_child("no_such_program", late, TpmReport, patience=60)


def test_openssls_configuration_reaches_only_the_child_that_tries_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSSL_CONF", "/openssl.cnf")
    assert children._environment(OPENSSL)["OPENSSL_CONF"] == "/openssl.cnf"
    assert "OPENSSL_CONF" not in children._environment(TPM)


def test_a_child_that_does_not_end_by_itself_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    (tmp_path / "stubborn.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(children, "PATIENCE", 0.2)
    with pytest.raises(TpmUnavailableError, match="does not answer within"):
        ask_child("stubborn", TpmJob(tcti="swtpm:port=1", folder=""), TpmReport, patience=0.5)


def test_an_interrupt_ends_the_child_too() -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ask_child(TPM, TpmJob(tcti="cmd:exec sleep 60", folder=""), TpmReport, patience=60)
    timer.join()


def test_sigterm_ends_it_in_order() -> None:
    with pytest.raises(SystemExit, match="143"):
        openssl_report._end(signal.SIGTERM, None)


def test_the_doctor_itself_loads_neither_pytss_nor_openssls_provider() -> None:
    program = "import sys, json, tpm_mtls.doctor.diagnosis; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not {"tpm2_pytss", "tpm_mtls.tpm"} & loaded
    assert "tpm_mtls.openssl.provider" not in loaded


# the servers' addresses


def test_urls_become_servers() -> None:
    assert (CA.server.host, CA.server.port, CA.server.base, CA.path) == (
        "ca.example",
        443,
        "/.well-known/est",
        "/cacerts",
    )
    labelled = ca_peer("https://[::1]:8443/.well-known/est/fleet")
    assert (labelled.server.host, labelled.server.base) == ("::1", "/.well-known/est/fleet")
    assert labelled.server.url == "https://[::1]:8443"
    assert (BACKEND.server.port, BACKEND.server.base, BACKEND.path) == (9443, "", "/whoami")
    assert backend_peer("https://backend.example").path == "/"


@pytest.mark.parametrize(
    "url",
    [
        *("http://ca.example", "ca.example", "https://", "https://a:b@ca", "https://ca/?q", "https://ca/#f"),
        *("https://ca:x", "https://ca/a b", "https://ca/\N{LATIN SMALL LETTER A WITH DIAERESIS}", "https://a..b"),
        f"https://{'a' * 64}.example",
    ],
)
def test_what_is_no_plain_https_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"the CA's URL (is no|is none|has a user|has a blank)"):
        ca_peer(url)
