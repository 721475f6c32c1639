"""``tpm-mtls client check``: a person reads what was found, and the line that says why it failed."""

from __future__ import annotations

import gc
import json
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from support.device_ca import DeviceCa
from support.https_server import fixed, http
from support.nginx import running_nginx
from support.relay_policies import PolicyWorkshop
from support.tpm_keys import make_key
from tpm_mtls.cli import run
from tpm_mtls.errors import (
    HandshakeError,
    PeerUnreachableError,
    PeerUntrustedError,
    PolicyError,
    PolicyRefusedError,
    TpmMtlsError,
    TpmUnavailableError,
    UsageError,
)
from tpm_mtls.key_reference import KeyFile
from tpm_mtls_client.check import Report, run_check
from tpm_mtls_client.options import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.certificates import TestCa
    from support.https_server import MakeServer
    from support.tpm import SimulatedTpm
    from tpm_mtls.configuration import RelayUse
    from tpm_mtls.identity import Identity


def settings(
    identity: Identity,
    *,
    tcti: str | None = None,
    tls12: bool = False,
    seconds: float = 5,
    relay: RelayUse | None = None,
) -> Settings:
    return Settings(identity=identity, tcti=tcti, authorization=None, seconds=seconds, tls12=tls12, relay=relay)


def lines(report: Report) -> dict[str, tuple[str, str]]:
    """Step -> verdict and text."""
    return {finding.step: (finding.verdict, finding.text) for finding in report.findings}


def only_tls12(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


# --- what is right ---


def test_a_working_connection_is_explained_step_by_step(device: Identity, serve: MakeServer) -> None:
    server = serve()
    report = run_check(f"localhost:{server.port}", settings(device))
    assert report.error is None
    assert {verdict for verdict, _ in lines(report).values()} == {"ok"}
    found = {step: text for step, (_, text) in lines(report).items()}
    assert list(found) == [
        *("identity", "key", "name", "tcp", "tls", "peer", "issuer", "name match", "signature", "answer")
    ]
    assert found["identity"].startswith("our certificate: CN=device-1, for device-1, valid 20")
    assert found["key"] == f"loaded: {device.key}, in software (key file {device.key})"
    assert "127.0.0.1" in found["name"]
    assert found["tls"] == "TLSv1.3, TLS_AES_256_GCM_SHA384, x25519"
    assert found["peer"].startswith("CN=localhost, for localhost, 127.0.0.1, ::1, valid ")
    assert found["peer"].endswith("issued by CN=test issuing CA")
    assert found["issuer"].startswith("CN=test issuing CA, valid ")
    assert found["signature"].endswith("with ecdsa_secp256r1_sha256")
    assert found["answer"] == "HTTP 200 to GET /; our certificate is accepted"
    assert server.requests[0].line == "GET / HTTP/1.1"


@pytest.mark.parametrize("tls12", [False, True])
@pytest.mark.parametrize("handle", [None, 0x81000100], ids=["tss2", "persistent"])
def test_it_says_where_in_the_tpm_the_signature_was_made(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer, handle: int | None, *, tls12: bool
) -> None:
    key = make_key(tpm, tmp_path, handle=handle)
    device = ca.identity(key.reference, key.public_key, "device-1")
    server = serve(configure=only_tls12 if tls12 else lambda _: None)
    report = run_check(server.url("/whoami"), settings(device, tcti=tpm.tcti, tls12=tls12))
    assert report.error is None
    place = "persistent handle 0x81000100" if handle else f"key file {key.reference}"
    assert lines(report)["signature"] == (
        "ok",
        f"the peer asked for our certificate; signed in the TPM ({place}) with ecdsa_secp256r1_sha256",
    )
    assert report.facts["tls"]["group"] == "x25519"
    assert report.facts["tls"]["version"] == ("TLSv1.2" if tls12 else "TLSv1.3")
    assert len(report.facts["peer_chain"]) == 2


def test_a_peer_that_does_not_ask_for_our_certificate_is_noted(device: Identity, serve: MakeServer) -> None:
    def anonymous(context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_NONE

    report = run_check(f"localhost:{serve(configure=anonymous).port}", settings(device))
    assert report.error is None
    assert lines(report)["signature"] == ("note", "none: the peer did not ask for a client certificate")
    assert lines(report)["answer"] == ("ok", "HTTP 200 to GET /")


@pytest.mark.parametrize("answer", [b"220 mail ready\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n"])
def test_a_peer_that_speaks_no_http_is_noted(device: Identity, serve: MakeServer, answer: bytes) -> None:
    server = serve(fixed(answer, then_close=True))
    report = run_check(f"localhost:{server.port}", settings(device))
    assert report.error is None
    assert lines(report)["answer"][0] == "note"
    assert "TLS works, but there is no answer in HTTP" in lines(report)["answer"][1]


def test_a_peer_that_waits_for_more_is_noted(device: Identity, serve: MakeServer) -> None:
    report = run_check(f"localhost:{serve(deaf=True).port}", settings(device, seconds=0.5))
    assert report.error is None
    assert "was not done within 0.5 s" in lines(report)["answer"][1]


# --- what is wrong ---


@pytest.mark.parametrize("tls12", [False, True])
def test_the_names_of_a_wrong_certificate_are_shown(
    device: Identity, serve: MakeServer, ca: TestCa, *, tls12: bool
) -> None:
    server = serve(identity=ca.software_identity("backend.example"), configure=only_tls12 if tls12 else lambda _: None)
    report = run_check(f"localhost:{server.port}", settings(device, tls12=tls12))
    assert isinstance(report.error, PeerUntrustedError)
    assert lines(report)["peer"][0] == "note"
    assert lines(report)["peer"][1].startswith("(not verified) CN=backend.example, for backend.example, valid ")
    assert report.findings[-1].verdict == "problem"
    assert "it is for another name" in report.findings[-1].text
    assert server.requests == []


def test_a_refusal_of_our_certificate_is_seen_in_tls_1_3_too(
    device: Identity, serve: MakeServer, ca: TestCa, other_ca: TestCa
) -> None:
    server = serve(identity=replace(ca.software_identity("localhost"), trust=other_ca.trust))
    report = run_check(f"localhost:{server.port}", settings(device))
    assert isinstance(report.error, HandshakeError)
    assert lines(report)["tls"][0] == "ok"
    assert lines(report)["answer"][0] == "problem"
    assert "does not trust the CA that issued it (alert unknown ca)" in lines(report)["answer"][1]


def test_nginx_refuses_in_http(device: Identity, ca: TestCa, other_ca: TestCa, tmp_path: Path) -> None:
    with running_nginx(tmp_path / "nginx", replace(ca.software_identity("localhost"), trust=other_ca.trust)) as url:
        report = run_check(url, settings(device))
    assert isinstance(report.error, HandshakeError)
    assert "refuses our certificate, in HTTP: 400 The SSL certificate error" in str(report.error)


def test_an_answer_400_is_no_refusal_of_the_certificate(device: Identity, serve: MakeServer) -> None:
    report = run_check(serve(fixed(http(400, b"bad request"))).url(), settings(device))
    assert report.error is None
    assert lines(report)["answer"] == ("ok", "HTTP 400 to GET /; our certificate is accepted")


def test_a_key_that_fits_none_of_the_peers_algorithms(device: Identity, ca: TestCa, tmp_path: Path) -> None:
    """OpenSSL goes on without a certificate then, and does not say so."""
    server = ca.software_identity("localhost", rsa.generate_private_key(65537, 2048))
    only_rsa = "ssl_conf_command ClientSignatureAlgorithms RSA-PSS+SHA256;"
    with running_nginx(tmp_path / "nginx", server, more=only_rsa) as url:
        report = run_check(url, settings(device))
        assert isinstance(report.error, HandshakeError)
        assert lines(report)["signature"][0] == "problem"
        assert "takes no signature algorithm that our key has" in str(report.error)
        fitting = ca.software_identity("device-2", rsa.generate_private_key(65537, 2048))
        assert run_check(url, settings(fitting)).facts["signature_scheme"] == "rsa_pss_rsae_sha256"


def test_a_tpm_that_is_off_is_the_first_problem(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path) -> None:
    key = make_key(tpm, tmp_path)
    tpm.stop()
    report = run_check("localhost:1", settings(ca.identity(key.reference, key.public_key, "device-1"), tcti=tpm.tcti))
    assert isinstance(report.error, TpmUnavailableError)
    assert lines(report).keys() == {"identity", "key"}


def test_a_tpm_that_goes_off_after_loading_is_named(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer
) -> None:
    """The key cannot be asked for its algorithm then, and OpenSSL goes on without a certificate."""

    def stop_tpm(context: ssl.SSLContext) -> None:
        context.sni_callback = lambda *_: tpm.stop() and None  # when our ClientHello has arrived

    key = make_key(tpm, tmp_path, handle=0x81000100)
    device = ca.identity(key.reference, key.public_key, "device-1")
    report = run_check(serve(configure=stop_tpm).url(), settings(device, tcti=tpm.tcti))
    assert isinstance(report.error, TpmUnavailableError)
    assert lines(report)["signature"][0] == "problem"


def test_a_closed_port_is_the_step_tcp(device: Identity) -> None:
    report = run_check("localhost:1", settings(device))
    assert isinstance(report.error, PeerUnreachableError)
    assert report.findings[-1].step == "tcp"


def test_an_ipv6_address_is_written_in_brackets(device: Identity) -> None:
    report = run_check("[::1]:1", settings(device))
    assert report.peer == "[::1]:1"
    assert isinstance(report.error, PeerUnreachableError)


def test_what_is_no_host_is_a_wrong_argument(device: Identity) -> None:
    for host in ("", "host:port", "http://host/", "user:hush@host"):
        with pytest.raises(UsageError):
            run_check(host, settings(device))


# --- the command ---


def _options(identity: Identity) -> list[str]:
    return ["--cert", str(identity.certificate), "--key", str(identity.key), "--trust", str(identity.trust)]


def test_the_report_goes_to_stdout_and_the_reason_to_stderr(
    device: Identity, serve: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    assert run(["client", "check", f"localhost:{server.port}", *_options(device)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(line.startswith("ok ") for line in out.splitlines())
    assert run(["client", "check", "localhost:1", *_options(device)]) == 6
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("problem  tcp          cannot reach localhost:1: ")
    assert err.startswith("tpm-mtls: error: cannot reach localhost:1: ")


def test_json_has_the_facts_and_the_error(
    device: Identity, serve: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["client", "check", serve().url(), *_options(device), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["error"], report["status"]) == (True, None, 200)
    assert report["peer_chain"][0]["names"] == ["localhost", "127.0.0.1", "::1"]
    assert report["key"] == {"reference": str(device.key), "where": f"in software (key file {device.key})"}
    assert run(["client", "check", "localhost:1", *_options(device), "--json"]) == 6
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["error"]["class"]) == (False, "PeerUnreachableError")
    assert report["error"]["hint"]


def test_the_projects_own_profiles_are_shown(tmp_path: Path, serve: Callable[..., Any]) -> None:
    ca = DeviceCa(tmp_path / "ca")
    report = run_check(serve(identity=ca.server("localhost")).url(), settings(ca.device("sensor-17")))
    assert report.error is None
    assert "for sensor-17" in lines(report)["identity"][1]


def test_it_says_whether_the_relay_is_used(ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer) -> None:
    key = make_key(tpm, tmp_path)
    device, server = ca.identity(key.reference, key.public_key, "device-1"), serve()
    plain = run_check(server.url(), settings(device, tcti=tpm.tcti))
    assert lines(plain)["relay"] == ("ok", "not used: no policy lies beside the key")
    always = run_check(server.url(), settings(device, tcti=tpm.tcti, relay="always"))
    assert lines(always)["relay"] == ("ok", "used, without a policy")
    assert always.as_data()["relay"] == {"used": True, "policies": {}}


def test_a_refused_policy_is_explained_with_the_policy(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer
) -> None:
    workshop = PolicyWorkshop(tpm, tmp_path, tmp_path)
    key = workshop.key([workshop.pcr(0, 7)])
    device = ca.identity(KeyFile(key.pem), key.public_key, "device-1")  # type: ignore[arg-type]  # EC
    server = serve()

    def relay_line(error: type[TpmMtlsError] | None, relay: RelayUse | None = None) -> tuple[str, str]:
        report = run_check(server.url(), settings(device, tcti=tpm.tcti, relay=relay))
        assert (type(report.error) if report.error else None) is error
        line = lines(report)["relay"]
        del report
        gc.collect()  # an error's traceback keeps the key in the TPM, which has room for three
        return line

    policy = f"policy of {key.name.hex()[:12]}…: PCRs 0, 7 (sha256) as on 2026-11-22T03:00:00Z"
    assert relay_line(None) == ("ok", f"used, {policy}")
    workshop.extend(7)
    assert relay_line(PolicyRefusedError) == ("ok", f"used, {policy}")
    never = relay_line(PolicyRefusedError, "never")
    assert never == ("note", f"not used, but a key with a policy needs it ({policy})")
    (tmp_path / f"{key.name.hex()}.policy.json").write_text("{}")
    assert "is no usable policy" in relay_line(PolicyError)[1]


def test_the_command_line_ends_with_the_tpms_refusal(
    ca: TestCa, tpm: SimulatedTpm, tmp_path: Path, serve: MakeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    workshop = PolicyWorkshop(tpm, tmp_path, tmp_path)
    key = workshop.key([workshop.pcr(7)])
    device = ca.identity(KeyFile(key.pem), key.public_key, "device-1")  # type: ignore[arg-type]  # EC
    files = ("--cert", str(device.certificate), "--key", str(device.key), "--trust", str(device.trust))
    command = ("client", "get", serve().url("/whoami"), *files, "--tcti", tpm.tcti)
    assert run(command) == 0
    workshop.extend(7)
    assert run(command) == 4
    said = capfd.readouterr().err.splitlines()
    assert said[-2].startswith(
        f"tpm-mtls: error: cannot sign with the key {key.pem}: the key's policy is not satisfied"
    )
    assert said[-1].startswith(f"tpm-mtls: hint: tpm-mtls policy check --tcti {tpm.tcti} --key {key.pem} says")
    assert run([*command, "--relay", "never"]) == 4
    assert run([*command, "--relay", "sometimes"]) == 2
