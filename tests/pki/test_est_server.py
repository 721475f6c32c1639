"""The EST endpoints over real TLS connections: RFC 7030 and RFC 8951, and what must be refused."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from support.authority import (
    attacking_extensions,
    basic,
    est_host,
    make_csr,
    make_token,
    new_key,
)
from support.device_ca import DeviceCa
from tpm_mtls import est
from tpm_mtls.certificates import Purpose, check_chain, check_matches, spki
from tpm_mtls.device_names import device_name
from tpm_mtls.errors import StateError, UsageError
from tpm_mtls_pki import audit, crl, records
from tpm_mtls_pki.csr import CheckedCsr
from tpm_mtls_pki.profiles import DEVICE, OPERATOR, SERVER, Subject, build_leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.authority import EstHost, MovableClock
    from tpm_mtls_pki.issuance import Registrar
    from tpm_mtls_pki.profiles import Issuer


@pytest.fixture
def host(registrar: Registrar) -> Iterator[EstHost]:
    with est_host(registrar) as running:
        yield running


def issued(answer: tuple[int, dict[str, str], bytes]) -> x509.Certificate:
    status, headers, body = answer
    assert (status, headers["Content-Type"]) == (200, "application/pkcs7-mime; smime-type=certs-only")
    (certificate,) = est.decode_certificates(body)
    return certificate


def revoke(registrar: Registrar, certificate: x509.Certificate, reason: str = "superseded") -> None:
    with registrar.authority.database.writing() as connection:
        record = records.find(connection, records.serial_text(certificate))
        assert record is not None
        records.revoke(connection, record, reason=reason, now=registrar.clock())


def refused_evidence(registrar: Registrar) -> list[tuple[int, str]]:
    """Check and reason of each such row in the audit log."""
    with registrar.authority.database.reading() as connection:
        found = [entry.detail for entry in audit.entries(connection) if entry.event == "evidence-refused"]
    return [(detail["check"], detail["why"]) for detail in found]


def test_cacerts_gives_root_and_issuing_to_anybody(host: EstHost, registrar: Registrar) -> None:
    status, headers, body = host.request("GET", est.CACERTS)
    assert (status, headers["Content-Type"]) == (200, "application/pkcs7-mime")
    assert set(est.decode_certificates(body)) == {registrar.authority.root, registrar.authority.issuing}


def test_answers_suit_the_strictest_clients(host: EstHost) -> None:
    """Content-Length and not chunked, headers below 1 kB, base64 in one line with one LF."""
    for path in (est.CACERTS, est.CSRATTRS):
        _, headers, body = host.request("GET", path)
        assert headers["Content-Length"] == str(len(body))
        assert "Transfer-Encoding" not in headers
        assert len(str(headers)) < 1000
        assert body.endswith(b"\n")
        assert body.count(b"\n") == 1


def test_no_answer_says_what_software_runs(host: EstHost) -> None:
    for method, path in (("GET", est.CACERTS), ("GET", "/nothing"), ("POST", est.SIMPLE_ENROLL)):
        assert host.request(method, path)[1]["Server"] == "tpm-mtls"


def test_a_token_enrolls_its_device(host: EstHost, registrar: Registrar) -> None:
    key, token = new_key(), make_token(registrar, "sensor-1.example")
    certificate = issued(host.enroll(make_csr(key), basic("sensor-1.example", token)))
    check_matches(certificate, spki(key.public_key()))
    assert device_name(certificate) == "sensor-1.example"
    anchors = [registrar.authority.root]
    check_chain(certificate, [registrar.authority.issuing], anchors, now=registrar.clock(), purpose=Purpose.CLIENT)


def test_the_same_request_again_gets_the_same_certificate(
    host: EstHost, registrar: Registrar, clock: MovableClock
) -> None:
    """A device whose first boot was interrupted after the answer was sent must finish without a human."""
    key, token = new_key(), make_token(registrar, "sensor-1", ttl=timedelta(hours=1))
    first = issued(host.enroll(make_csr(key), basic("sensor-1", token)))
    assert issued(host.enroll(make_csr(key, name="other"), basic("sensor-1", token))) == first
    clock.move(hours=1)
    assert host.enroll(make_csr(key), basic("sensor-1", token))[0] == 401


def test_a_used_token_enrolls_no_other_key(host: EstHost, registrar: Registrar) -> None:
    token = make_token(registrar, "sensor-1")
    issued(host.enroll(make_csr(new_key()), basic("sensor-1", token)))
    assert host.enroll(make_csr(new_key()), basic("sensor-1", token))[0] == 401


def test_a_used_token_gives_no_revoked_certificate(host: EstHost, registrar: Registrar) -> None:
    key, token = new_key(), make_token(registrar, "sensor-1")
    revoke(registrar, issued(host.enroll(make_csr(key), basic("sensor-1", token))))
    assert host.enroll(make_csr(key), basic("sensor-1", token))[0] == 401


def test_a_refused_request_does_not_use_the_token_up(host: EstHost, registrar: Registrar) -> None:
    token = make_token(registrar, "sensor-1")
    status, _, body = host.enroll(b"no csr", basic("sensor-1", token))
    assert (status, body) == (400, b"that is no certificate request (PKCS #10)\n")
    wrong = make_csr(new_key(), name="sensor-1").replace(b"sensor-1", b"sensor-2")
    status, _, body = host.enroll(wrong, basic("sensor-1", token))
    assert (status, body) == (400, b"the request's signature is wrong\n")
    assert refused_evidence(registrar) == [], "who has a token and asks for no nonce shows no evidence"
    assert issued(host.enroll(make_csr(new_key()), basic("sensor-1", token)))


def test_every_wrong_authorization_gets_the_same_answer(
    host: EstHost, registrar: Registrar, clock: MovableClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An attacker learns nothing from it; the log has the reason."""
    caplog.set_level(logging.INFO, "tpm_mtls_pki")
    good, other = make_token(registrar, "sensor-1", ttl=timedelta(hours=9)), make_token(registrar, "sensor-2")
    used = make_token(registrar, "sensor-3", ttl=timedelta(hours=9))
    issued(host.enroll(make_csr(new_key()), basic("sensor-3", used)))
    clock.move(hours=2)
    attempts = {
        "no-credentials": [{}]
        + [{"Authorization": value} for value in ("Bearer x", "Basic !", "Basic", "Basic eHg=", "Basic /w==")],
        "token-unknown": [basic("sensor-1", "wrong"), basic("sensor-1", ""), basic("", "")],
        "token-of-another-device": [basic("sensor-2", good)],
        "token-expired": [basic("sensor-2", other)],
        "token-used": [basic("sensor-3", used)],
    }
    answers = set()
    for reason, headers in attempts.items():
        for header in headers:
            caplog.clear()
            status, answer, body = host.enroll(make_csr(new_key()), header)
            answers.add((status, answer["WWW-Authenticate"], body))
            assert json.loads(caplog.messages[-1])["reason"] == reason
    assert {status for status, _, _ in answers} == {401}
    assert len(answers) == 1


def test_no_log_line_holds_a_token(host: EstHost, registrar: Registrar, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = make_token(registrar, "sensor-1")
    for _ in range(2):
        host.enroll(make_csr(new_key()), basic("sensor-1", token))
    host.enroll(make_csr(new_key()), basic("sensor-2", token))
    assert token not in caplog.text


def test_a_csr_gets_nothing_but_its_key_certified(
    host: EstHost, registrar: Registrar, caplog: pytest.LogCaptureFixture
) -> None:
    """CA rights, foreign names and extensions are ignored, and logged."""
    caplog.set_level(logging.INFO, "tpm_mtls_pki")
    key, token = new_key(), make_token(registrar, "sensor-1")
    evil = make_csr(key, name="evil.example", extensions=attacking_extensions())
    certificate = issued(host.enroll(evil, basic("sensor-1", token)))
    honest = issued(host.enroll(make_csr(new_key()), basic("sensor-2", make_token(registrar, "sensor-2"))))
    assert certificate.subject.rfc4514_string() == "CN=sensor-1"
    assert [extension.oid for extension in certificate.extensions] == [each.oid for each in honest.extensions]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert device_name(certificate) == "sensor-1"
    line = next(json.loads(message) for message in caplog.messages if "evil" in message)
    assert line["ignored"][0] == "subject CN=evil.example"
    assert "critical BasicConstraints CA:TRUE" in line["ignored"]


def test_the_current_certificate_renews_itself(host: EstHost, registrar: Registrar) -> None:
    """With the same key and with another one; the names stay, whatever the CSR says."""
    key, token = new_key(), make_token(registrar, "sensor-1")
    first = issued(host.enroll(make_csr(key), basic("sensor-1", token)))
    second = issued(host.enroll(make_csr(key, name="evil"), renew=True, context=host.context(first, key)))
    assert second.serial_number != first.serial_number
    assert (second.subject, device_name(second)) == (first.subject, "sensor-1")
    other = new_key()
    third = issued(host.enroll(make_csr(other), renew=True, context=host.context(second, key)))
    check_matches(third, spki(other.public_key()))
    assert device_name(third) == "sensor-1"


def test_simpleenroll_takes_a_certificate_instead_of_a_token(host: EstHost, registrar: Registrar) -> None:
    """RFC 7030, 3.3.2. Credentials that are given must be right all the same."""
    key, token = new_key(), make_token(registrar, "sensor-1")
    first = issued(host.enroll(make_csr(key), basic("sensor-1", token)))
    context = host.context(first, key)
    assert device_name(issued(host.enroll(make_csr(new_key()), context=context))) == "sensor-1"
    assert host.enroll(make_csr(new_key()), basic("sensor-1", "wrong"), context=context)[0] == 401


def test_a_renewal_needs_a_certificate(host: EstHost, registrar: Registrar) -> None:
    token = make_token(registrar, "sensor-1")
    assert host.enroll(make_csr(new_key()), renew=True)[0] == 403
    assert host.enroll(make_csr(new_key()), basic("sensor-1", token), renew=True)[0] == 403


def test_a_revoked_certificate_renews_nothing(host: EstHost, registrar: Registrar) -> None:
    key, token = new_key(), make_token(registrar, "sensor-1")
    first = issued(host.enroll(make_csr(key), basic("sensor-1", token)))
    revoke(registrar, first)
    for renew, status in ((True, 403), (False, 401)):
        assert host.enroll(make_csr(key), renew=renew, context=host.context(first, key))[0] == status


def test_an_expired_certificate_renews_nothing(host: EstHost, registrar: Registrar, clock: MovableClock) -> None:
    key, token = new_key(), make_token(registrar, "sensor-1")
    first = issued(host.enroll(make_csr(key), basic("sensor-1", token)))
    clock.move(days=91)
    assert host.enroll(make_csr(key), renew=True, context=host.context(first, key))[0] == 403


def test_a_certificate_that_the_store_does_not_know_renews_nothing(host: EstHost, registrar: Registrar) -> None:
    """Even if the issuing CA's key signed it."""
    key = new_key()
    subject = Subject.device("sensor-1")
    forged = build_leaf(DEVICE, subject, key.public_key(), registrar.issuer, now=registrar.clock())
    assert host.enroll(make_csr(key), renew=True, context=host.context(forged, key))[0] == 403


def test_tls_refuses_what_is_no_client_certificate_of_ours(host: EstHost, registrar: Registrar) -> None:
    key = new_key()
    server = registrar.issue(SERVER, Subject("s.example", ("s.example",)), CheckedCsr(key.public_key())).certificate
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_CERTIFICATE"):
        host.enroll(make_csr(key), renew=True, context=host.context(server, key))


@pytest.mark.parametrize(("renew", "refusal"), [(True, 403), (False, 401)])
def test_an_operator_gets_no_certificate_by_est(
    host: EstHost, registrar: Registrar, *, renew: bool, refusal: int
) -> None:
    """TLS lets it in, since it may be a client; the profile decides."""
    key = new_key()
    subject = Subject.operator("alice@example.com")
    certificate = registrar.issue(OPERATOR, subject, CheckedCsr(key.public_key())).certificate
    status, *_ = host.enroll(make_csr(key), renew=renew, context=host.context(certificate, key))
    assert status == refusal
    with registrar.authority.database.reading() as connection:
        assert [each.profile for each in records.listing(connection) if each.subject != "localhost"] == ["operator"]


def test_a_client_whose_certificate_tls_refuses_learns_why(
    host: EstHost, registrar: Registrar, template_issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tpm_mtls_pki")
    key, device = new_key(), Subject.device("sensor-1")
    past = registrar.clock() - timedelta(days=200)
    expired = build_leaf(DEVICE, device, key.public_key(), template_issuer, now=past)
    with pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_EXPIRED"):
        host.enroll(make_csr(key), renew=True, context=host.context(expired, key))
    stranger = DeviceCa(host.folder / "other", name="Other")
    foreign = stranger.certify(key.public_key(), "sensor-1", names=[x509.DNSName("sensor-1")], usages=None)
    with pytest.raises(ssl.SSLError, match="ALERT_UNKNOWN_CA"):
        host.enroll(make_csr(key), renew=True, context=host.context(foreign, key))
    lines = [line for line in caplog.messages if line.startswith("handshake refused ")]
    assert [json.loads(line.removeprefix("handshake refused ")) for line in lines] == [
        {"remote": "127.0.0.1", "reason": "CERTIFICATE_VERIFY_FAILED", "cause": None}
    ] * 2


@pytest.mark.parametrize(("of", "status"), [("ca", 400), ("other", 400), ("compromised", 400), ("own", 200)])
def test_keys_of_others_are_refused(host: EstHost, registrar: Registrar, of: str, status: int) -> None:
    """The CA's own key, another device's, one that was revoked as compromised."""
    key = registrar.issuer.key if of == "ca" else new_key()
    device = "sensor-2" if of == "other" else "sensor-1"
    if of != "ca":
        first = issued(host.enroll(make_csr(key), basic("sensor-1", make_token(registrar, "sensor-1"))))
        if of == "compromised":
            revoke(registrar, first, "keyCompromise")
    answer = host.enroll(make_csr(key), basic(device, make_token(registrar, device)))
    assert answer[0] == status


def test_wrong_methods_paths_and_media_types(host: EstHost, registrar: Registrar) -> None:
    headers = basic("sensor-1", make_token(registrar, "sensor-1"))
    status, answer, _ = host.request("GET", est.SIMPLE_ENROLL)
    assert (status, answer["Allow"]) == (405, "POST")
    assert host.request("POST", est.CACERTS)[0] == 405
    assert host.request("GET", "/.well-known/est/serverkeygen")[0] == 404
    assert host.request("POST", est.SIMPLE_ENROLL, b"x", headers)[0] == 415
    assert host.request("POST", est.SIMPLE_ENROLL, b"x", headers | {"Content-Type": "text/html"})[0] == 415
    fine = {"Content-Type": "Application/PKCS10; charset=us-ascii", "Content-Transfer-Encoding": "7bit"}
    assert host.request("POST", est.SIMPLE_ENROLL, est.encode_body(make_csr(new_key())), headers | fine)[0] == 200


def test_bodies_come_with_line_breaks_or_chunked(host: EstHost, registrar: Registrar) -> None:
    for number, wrap in enumerate((est.encode_body, lambda der: b"\r\n".join(_pieces(est.encode_body(der))))):
        headers = basic(f"s{number}", make_token(registrar, f"s{number}")) | {"Content-Type": est.CSR_TYPE}
        assert host.request("POST", est.SIMPLE_ENROLL, wrap(make_csr(new_key())), headers)[0] == 200
    headers = basic("s9", make_token(registrar, "s9")) | {"Content-Type": est.CSR_TYPE, "Transfer-Encoding": "chunked"}
    chunks = _pieces(est.encode_body(make_csr(new_key())))
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    assert host.request("POST", est.SIMPLE_ENROLL, body, headers)[0] == 200


def _pieces(data: bytes) -> list[bytes]:
    return [data[at : at + 64] for at in range(0, len(data), 64)]


@pytest.mark.parametrize(("size", "status"), [(1_000_000, 413), (60_000, 400)])
def test_bodies_are_capped(host: EstHost, registrar: Registrar, size: int, status: int) -> None:
    headers = basic("sensor-1", make_token(registrar, "sensor-1")) | {"Content-Type": est.CSR_TYPE}
    answer, _, body = host.request("POST", est.SIMPLE_ENROLL, b"A" * size, headers)
    assert answer == status
    if status == 413:
        assert body == b"the request is too large\n"
        assert refused_evidence(registrar) == [(5, "the request is too large")], "nothing else is that large"


def test_whoever_dawdles_is_cut_off(registrar: Registrar) -> None:
    """In the TLS handshake, in the headers, and in the body."""
    with (
        est_host(registrar, handshake_timeout=0.3) as host,
        socket.create_connection(("127.0.0.1", host.port), 10) as raw,
    ):
        assert raw.recv(1) == b""
    with est_host(registrar, idle_timeout=0.5, body_timeout=0.3) as host:
        with _connect(host) as headers:
            begun = time.monotonic()
            with contextlib.suppress(OSError):  # it may be cut off already
                _drip(headers)
                assert headers.recv(1) == b""
            assert time.monotonic() - begun < 5
        with _connect(host) as silent:
            assert silent.recv(1) == b""
        head = f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nContent-Type: {est.CSR_TYPE}\r\nContent-Length: 9\r\n"
        with _connect(host) as body:
            body.sendall(head.encode() + b"\r\nAAAA")
            assert body.recv(100).startswith(b"HTTP/1.1 408 ")
        assert host.request("GET", est.CACERTS)[0] == 200


def _drip(connection: ssl.SSLSocket) -> None:
    """Sends headers that come to no end, but do come."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
    for _ in range(8):
        connection.sendall(b"x")
        time.sleep(0.05)


def test_one_more_connection_than_allowed_waits_for_a_place(
    registrar: Registrar, caplog: pytest.LogCaptureFixture
) -> None:
    with est_host(registrar, connections=2) as host, ThreadPoolExecutor(1) as threads:
        first, second = _connect(host), _connect(host)
        with first, second:
            third = threads.submit(host.request, "GET", est.CACERTS)
            time.sleep(0.2)
            assert not third.done()
            first.close()
            assert third.result(10)[0] == 200
    assert 'connection limit reached {"connections":2}' in caplog.messages


def test_the_end_does_not_wait_for_an_idle_connection(registrar: Registrar) -> None:
    with contextlib.ExitStack() as opened:
        with est_host(registrar) as host:
            idle, shaking = _connect(host), socket.create_connection(("127.0.0.1", host.port), 10)
            opened.enter_context(idle)
            opened.enter_context(shaking)
            assert host.request("GET", est.CACERTS)[0] == 200
            begun = time.monotonic()
        assert time.monotonic() - begun < 5
        assert idle.recv(1) == b""


def _connect(host: EstHost) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", host.port), 10)
    return host.context().wrap_socket(raw, server_hostname="localhost")


def test_crls_are_served_where_certificates_point(host: EstHost, registrar: Registrar) -> None:
    for name, issuer in (("issuing", registrar.authority.issuing), ("root", registrar.authority.root)):
        status, headers, body = host.request("GET", f"/crl/{name}.crl")
        assert (status, headers["Content-Type"]) == (200, "application/pkix-crl")
        assert x509.load_der_x509_crl(body).is_signature_valid(issuer.public_key())  # type: ignore[arg-type]


def test_without_a_crl_there_is_none_to_serve(host: EstHost, registrar: Registrar, tmp_path: Path) -> None:
    with registrar.authority.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM crls WHERE issuer = 'root'")
    assert host.request("GET", "/crl/root.crl")[0] == 404
    assert crl.publish(registrar.authority.database, "root", tmp_path / "root.crl.pem") is None
    assert not (tmp_path / "root.crl.pem").exists()


def test_a_revocation_reaches_the_crl_within_seconds(registrar: Registrar) -> None:
    with est_host(registrar, maintenance_interval=0.1) as host:
        key, token = new_key(), make_token(registrar, "sensor-1")
        certificate = issued(host.enroll(make_csr(key), basic("sensor-1", token)))
        revoke(registrar, certificate)
        assert _wait_until(lambda: _is_listed(host, certificate))


def _is_listed(host: EstHost, certificate: x509.Certificate) -> bool:
    found = x509.load_pem_x509_crl((host.folder / "crl.pem").read_bytes())
    return found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def _crl_is_due(registrar: Registrar) -> bool:
    with registrar.authority.database.reading() as connection:
        return crl.is_due(connection, now=registrar.clock())


def _wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_maintenance_goes_on_after_an_error(registrar: Registrar, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk, a database that restarts: the next round tries again."""
    database = registrar.authority.database
    with est_host(registrar, maintenance_interval=0.1) as host:
        key = new_key()
        certificate = issued(host.enroll(make_csr(key), basic("s", make_token(registrar, "s"))))
        with database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE crls RENAME TO gone")
        assert _wait_until(lambda: "no such table: crls" in caplog.text)
        with database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO crls")
        revoke(registrar, certificate)
        assert _wait_until(lambda: _is_listed(host, certificate))


def test_the_server_renews_its_own_certificate_and_the_crl(registrar: Registrar, clock: MovableClock) -> None:
    with est_host(registrar, maintenance_interval=0.1) as host:
        before = _server_certificate(host)
        clock.move(days=61)
        assert _wait_until(lambda: _server_certificate(host) != before)
        after = x509.load_der_x509_certificate(_server_certificate(host))
        assert after.not_valid_before_utc > clock() - timedelta(days=1)
        assert _wait_until(lambda: not _crl_is_due(registrar))


def _server_certificate(host: EstHost) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the test's clock is ahead of the machine's
    with socket.create_connection(("127.0.0.1", host.port), 10) as raw, context.wrap_socket(raw) as connection:
        return connection.getpeercert(binary_form=True) or b""


def test_tls_1_2_is_spoken_on_request_only(host: EstHost) -> None:
    context = host.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        host.request("GET", est.CACERTS, context=context)


def test_tls_1_2_on_request(registrar: Registrar) -> None:
    with est_host(registrar, minimum_version=ssl.TLSVersion.TLSv1_2) as host:
        context = host.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert host.request("GET", est.CACERTS, context=context)[0] == 200


@pytest.mark.usefixtures("host")
def test_one_process_serves_a_ca(registrar: Registrar) -> None:
    with pytest.raises(StateError, match="being served already"), est_host(registrar):
        pass


def test_an_address_in_use_is_named(registrar: Registrar) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}"), est_host(registrar, port=port):
            pass


def test_a_store_that_does_not_answer_issues_nothing(host: EstHost, registrar: Registrar) -> None:
    token = make_token(registrar, "sensor-1")
    with registrar.authority.database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE tokens RENAME TO gone")
    status, headers, body = host.enroll(make_csr(new_key()), basic("sensor-1", token))
    assert (status, headers["Retry-After"], body) == (503, "30", b"try again later\n")


def test_the_url_has_a_name_that_the_certificate_has(registrar: Registrar) -> None:
    with est_host(registrar, host="0.0.0.0", name="pki.example") as host:  # noqa: S104 - on purpose
        assert host.url == f"https://pki.example:{host.port}"
    with est_host(registrar, host="::1") as host:
        assert host.url == f"https://[::1]:{host.port}"
