"""The device's side of EST, against a CA that lies."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from support import lying_ca
from support.lying_ca import DAY, LyingCa
from tpm_mtls import est
from tpm_mtls.authorization import Secret
from tpm_mtls.certificates import certificate_spki, spki
from tpm_mtls.device_names import device_name
from tpm_mtls.device_requests import Timeouts
from tpm_mtls.errors import (
    CertificateExpiredError,
    CertificateNotYetValidError,
    HandshakeError,
    PeerUnreachableError,
    PeerUntrustedError,
    RequestRefusedError,
    ResponseError,
    TokenRefusedError,
    TpmMtlsError,
    UsageError,
)
from tpm_mtls.freshness import (
    TYPE_TPM,
    ActivationRequest,
    ActivationResponse,
    NonceRequest,
    NonceResponse,
    decode_request,
    encode_response,
)
from tpm_mtls_keygen.bootstrap_token import BootstrapToken
from tpm_mtls_keygen.est_client import EstClient, Shown
from tpm_mtls_keygen.est_url import EstUrl
from tpm_mtls_keygen.patience import Later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW = datetime.now(UTC)
TOKEN = BootstrapToken("sensor-17", Secret(b"correct-horse"))


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[LyingCa]:
    with LyingCa(tmp_path) as running:
        running.make_token("sensor-17")
        yield running


def client(ca: LyingCa, *, url: str | None = None, step: float = 5, exchange: float = 5) -> EstClient:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(ca.trust)
    return EstClient(url or ca.url, context, timeouts=Timeouts(step=step, exchange=exchange))


def make_csr() -> tuple[bytes, bytes]:
    """A CSR and its public key, both DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    return csr.public_bytes(Encoding.DER), spki(key.public_key())


def test_cacerts_returns_the_ca_certificates(ca: LyingCa) -> None:
    found = client(ca).ca_certificates(now=NOW)

    assert not isinstance(found, Later)
    assert set(found) == {ca.root.certificate, ca.issuing.certificate}


def test_simpleenroll_returns_a_certificate_for_the_key_of_the_request(ca: LyingCa) -> None:
    csr, public_key = make_csr()

    answer = client(ca).enroll(csr, TOKEN, now=NOW)

    assert not isinstance(answer, Later)
    assert [certificate_spki(certificate) for certificate in answer] == [public_key]
    assert device_name(answer[0]) == "sensor-17"


def test_the_same_token_and_key_get_the_same_certificate_after_a_lost_answer(ca: LyingCa) -> None:
    csr, _ = make_csr()
    ca.next("simpleenroll", lying_ca.lose_answer())

    lost = client(ca).enroll(csr, TOKEN, now=NOW)
    answer = client(ca).enroll(csr, TOKEN, now=NOW)

    assert isinstance(lost, Later)
    assert answer == (ca.issued[0],)


def test_a_used_token_is_refused_with_the_ca_s_own_words(ca: LyingCa) -> None:
    client(ca).enroll(make_csr()[0], TOKEN, now=NOW)

    with pytest.raises(TokenRefusedError, match=r"refused the bootstrap token \(401\): the token is wrong or used"):
        client(ca).enroll(make_csr()[0], TOKEN, now=NOW)


def test_a_wrong_token_is_refused_and_not_repeated_in_the_error(ca: LyingCa) -> None:
    wrong = BootstrapToken("sensor-17", Secret(b"wrong-horse"))

    with pytest.raises(TokenRefusedError) as refusal:
        client(ca).enroll(make_csr()[0], wrong, now=NOW)

    assert "horse" not in str(refusal.value) + refusal.value.hint
    assert refusal.value.status == 401


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (lying_ca.html_page(), ResponseError, "answered cacerts with text/html; charset=utf-8 instead of"),
        (lying_ca.body(b"<html>", content_type="application/pkcs7-mime"), ResponseError, "is not base64"),
        (lying_ca.body(b""), ResponseError, "is empty"),
        (lying_ca.body(b"AAAA", content_type="\x1b[31m"), ResponseError, r"with \?\[31m instead of"),
        (lying_ca.oversize(64 * 1024 + 1), ResponseError, "larger than 65536 bytes"),
        (lying_ca.oversize(5_000_000), ResponseError, "larger than 65536 bytes"),
        (lying_ca.truncated(), ResponseError, "no certificates in CMS form"),
        (lying_ca.status(404, "no such page"), RequestRefusedError, "answered 404 to cacerts: no such page"),
        (lying_ca.status(500, "<p>\n", content_type="text/html"), RequestRefusedError, "answered 500 to cacerts\n"),
        (lying_ca.status(401, ""), RequestRefusedError, "answered 401 to cacerts\n"),
        (lying_ca.status(301, location="https://localhost:1/"), RequestRefusedError, "answered 301 to cacerts\n"),
    ],
)
def test_an_answer_that_is_none_of_est_is_refused_for_good(
    ca: LyingCa, behaviour: Callable[[lying_ca.Exchange], None], error: type[TpmMtlsError], message: str
) -> None:
    ca.next("cacerts", behaviour)

    with pytest.raises(error, match=message):
        client(ca).ca_certificates(now=NOW)

    assert ca.seen == ["cacerts"]


def test_an_error_page_in_another_alphabet_cannot_write_to_the_terminal(ca: LyingCa) -> None:
    ca.next("cacerts", lying_ca.status(400, "\x1b]0;owned\x07 é " + "x" * 5000))

    with pytest.raises(RequestRefusedError) as refusal:
        client(ca).ca_certificates(now=NOW)

    assert str(refusal.value).isascii()
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("behaviour", "after", "message"),
    [
        (lying_ca.status(202, retry_after=7), 7.0, "has not decided yet"),
        (lying_ca.status(503, "busy", retry_after="120"), 120.0, "answered 503 unavailable: busy"),
        (lying_ca.status(502), None, "answered 502 bad gateway"),
        (lying_ca.status(504, retry_after="soon"), None, "answered 504 gateway timeout"),
        (lying_ca.status(503, retry_after="99999999999999"), 86400.0, "503"),
        (lying_ca.cut_connection(), None, "ended the connection"),
        (lying_ca.cut_body(), None, "ended the connection in the middle of its answer"),
    ],
)
def test_what_may_pass_is_answered_with_later(
    ca: LyingCa, behaviour: Callable[[lying_ca.Exchange], None], after: float | None, message: str
) -> None:
    ca.next("simpleenroll", behaviour)

    outcome = client(ca).enroll(make_csr()[0], TOKEN, now=NOW)

    assert isinstance(outcome, Later)
    assert outcome.after == after
    assert message in str(outcome.error)
    assert outcome.error.hint


@pytest.mark.parametrize(
    "behaviour", [lying_ca.silent(), lying_ca.trickle(0.02, headers=True), lying_ca.trickle(0.02, headers=False)]
)
def test_a_slow_ca_is_given_up_in_time(ca: LyingCa, behaviour: Callable[[lying_ca.Exchange], None]) -> None:
    ca.next("cacerts", behaviour)

    outcome = client(ca, step=5, exchange=0.3).ca_certificates(now=NOW)

    assert isinstance(outcome, Later)
    assert isinstance(outcome.error, PeerUnreachableError)
    assert "did not answer in time" in str(outcome.error)


def test_each_step_has_its_own_timeout_too(ca: LyingCa) -> None:
    ca.next("cacerts", lying_ca.silent())

    outcome = client(ca, step=0.2, exchange=20).ca_certificates(now=NOW)

    assert isinstance(outcome, Later)
    assert "did not answer in time" in str(outcome.error)


def test_nobody_there_is_unreachable(ca: LyingCa) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    outcome = client(ca, url=f"https://localhost:{port}").ca_certificates(now=NOW)

    assert isinstance(outcome, Later)
    assert f"https://localhost:{port} cannot be reached: connection refused" in str(outcome.error)


def test_a_name_that_does_not_resolve_is_unreachable(ca: LyingCa) -> None:
    outcome = client(ca, url="https://ca.invalid").ca_certificates(now=NOW)

    assert isinstance(outcome, Later)
    assert "its name does not resolve" in str(outcome.error)


def test_a_server_of_somebody_else_s_ca_is_not_trusted(ca: LyingCa) -> None:
    ca.present(issuer=ca.foreign)

    with pytest.raises(PeerUntrustedError, match="is not trusted: ") as refusal:
        client(ca).ca_certificates(now=NOW)

    assert "--trust" in refusal.value.hint
    assert ca.seen == []


def test_a_server_with_another_name_is_not_trusted(ca: LyingCa) -> None:
    ca.present(name="elsewhere.example")

    with pytest.raises(PeerUntrustedError, match="hostname mismatch") as refusal:
        client(ca).ca_certificates(now=NOW)

    assert "URL" in refusal.value.hint


def test_an_address_that_the_certificate_does_not_name_is_not_trusted(ca: LyingCa) -> None:
    ca.present(name="elsewhere.example")

    with pytest.raises(PeerUntrustedError, match="ip address mismatch"):
        client(ca, url=ca.url.replace("localhost", "127.0.0.1")).ca_certificates(now=NOW)


def test_an_expired_server_certificate_is_its_own_error(ca: LyingCa) -> None:
    ca.present(not_before=NOW - 2 * DAY, not_after=NOW - DAY)

    with pytest.raises(CertificateExpiredError, match="by this device's clock"):
        client(ca).ca_certificates(now=NOW)


def test_a_clock_before_the_server_certificate_s_start_is_its_own_error(ca: LyingCa) -> None:
    ca.present(not_before=NOW + DAY, not_after=NOW + 2 * DAY)

    with pytest.raises(CertificateNotYetValidError, match="not yet valid by this device's clock") as refusal:
        client(ca).ca_certificates(now=NOW)

    assert "clock" in refusal.value.hint


def test_an_older_protocol_is_refused(ca: LyingCa) -> None:
    ca.present(maximum_version=ssl.TLSVersion.TLSv1_2)

    with pytest.raises(HandshakeError, match="protocol version"):
        client(ca).ca_certificates(now=NOW)


def test_a_port_that_does_not_speak_tls_is_no_handshake(ca: LyingCa) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://localhost:{server.getsockname()[1]}"

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP ready\r\n")
                connection.recv(1000)

        greeter = threading.Thread(target=greet)
        greeter.start()
        with pytest.raises(HandshakeError, match=r"TLS connection to the CA at .* failed: "):
            client(ca, url=url).ca_certificates(now=NOW)
        greeter.join()


def test_a_server_that_hangs_up_or_says_nothing_in_the_handshake_is_unreachable(ca: LyingCa) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://localhost:{server.getsockname()[1]}"

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)  # the whole ClientHello: else the end would be a reset

        caller = threading.Thread(target=hang_up)
        caller.start()
        hung_up = client(ca, url=url).ca_certificates(now=NOW)
        caller.join()
        silent = client(ca, url=url, step=0.3, exchange=0.1).ca_certificates(now=NOW)

    assert isinstance(hung_up, Later)
    assert "ended the connection" in str(hung_up.error)
    assert isinstance(silent, Later)
    assert "did not answer in time" in str(silent.error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ca.example", EstUrl("ca.example", 443, "/.well-known/est")),
        ("https://ca.example:8443/", EstUrl("ca.example", 8443, "/.well-known/est")),
        ("https://[::1]:8443/.well-known/est", EstUrl("::1", 8443, "/.well-known/est")),
        ("https://ca.example/.well-known/est/fleet-2/", EstUrl("ca.example", 443, "/.well-known/est/fleet-2")),
    ],
)
def test_a_url_of_an_est_server_is_understood(text: str, expected: EstUrl) -> None:
    assert EstUrl.parse(text) == expected
    assert EstUrl.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not https"),
        ("ca.example", "not https"),
        ("http://ca.example", "not https"),
        ("https://", "not an EST server's URL"),
        ("https://user:secret@ca.example", "not an EST server's URL"),
        ("https://ca.example?x=1", "not an EST server's URL"),
        ("https://ca.example#x", "not an EST server's URL"),
        ("https://ca.example:99999", "not a URL"),
        ("https://[::1", "not a URL"),
        ("https://ca.example/est", "not the path of an EST server"),
        ("https://ca.example/.well-known/est/a/b", "not the path of an EST server"),
        ("https://ca.example/.well-known/est/\r\nHost:x", "not the path|not a URL|not an EST"),
    ],
)
def test_another_url_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EstUrl.parse(text)


# -- nonces -----------------------------------------------------------------------------------------------------------

ASKED = NonceRequest(32, TYPE_TPM, ActivationRequest(b"ak", ek_public=b"ek"))
GIVEN = NonceResponse(bytes(range(32)), 300, ActivationResponse(b"blob", b"secret"))


def give(response: bytes, **headers: str) -> Callable[[lying_ca.Exchange], None]:
    return lambda exchange: exchange.send(response, content_type=est.NONCE_TYPE, **headers)


def test_a_nonce_is_asked_for_and_the_csr_follows_on_the_same_connection_with_the_cookie(ca: LyingCa) -> None:
    seen: list[tuple[object, str | None]] = []
    asked: list[bytes] = []

    def first(exchange: lying_ca.Exchange) -> None:
        asked.append(exchange.body)
        seen.append((exchange.handler.connection, exchange.handler.headers["Cookie"]))
        give(encode_response(GIVEN), set_cookie="est=abc_-.; Path=/.well-known/est; Secure; HttpOnly")(exchange)

    def second(exchange: lying_ca.Exchange) -> None:
        seen.append((exchange.handler.connection, exchange.handler.headers["Cookie"]))
        exchange.truth()

    ca.next("nonce", first)
    ca.next("simpleenroll", second)
    with client(ca).exchange() as exchange:
        assert exchange.nonce(ASKED, now=NOW) == GIVEN
        assert not isinstance(exchange.enroll(make_csr()[0], Shown(TOKEN), now=NOW), Later)

    assert decode_request(asked[0]) == ASKED
    assert seen == [(seen[0][0], None), (seen[0][0], "est=abc_-.")]


def test_a_connection_that_the_server_closed_in_between_is_opened_again(ca: LyingCa) -> None:
    ca.next("nonce", give(encode_response(GIVEN), set_cookie="est=abc", connection="close"))
    with client(ca).exchange() as exchange:
        assert exchange.nonce(ASKED, now=NOW) == GIVEN
        assert not isinstance(exchange.enroll(make_csr()[0], Shown(TOKEN), now=NOW), Later)


@pytest.mark.parametrize("cookie", ["", "=a", "a b=c", "a", "a=b\x01", "a=" + "b" * 600])
def test_what_is_no_cookie_is_not_sent_back_whole(ca: LyingCa, cookie: str) -> None:
    sent: list[str | None] = []

    def look(exchange: lying_ca.Exchange) -> None:
        sent.append(exchange.handler.headers["Cookie"])
        exchange.truth()

    ca.next("nonce", give(encode_response(GIVEN), set_cookie=cookie))
    ca.next("simpleenroll", look)
    with client(ca).exchange() as exchange:
        exchange.nonce(ASKED, now=NOW)
        exchange.enroll(make_csr()[0], Shown(TOKEN), now=NOW)

    assert sent[0] is None or (len(sent[0]) <= 520 and sent[0].isprintable())


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (lying_ca.status(404, "no such page"), RequestRefusedError, "answered 404 to nonce: it verifies no TPM"),
        (lying_ca.status(405), RequestRefusedError, "answered 405 to nonce: it verifies no TPM"),
        (lying_ca.status(400, "bad key"), RequestRefusedError, "answered 400 to nonce: bad key"),
        (
            lying_ca.html_page(),
            ResponseError,
            "answered nonce with text/html; charset=utf-8 instead of application/est",
        ),
        (give(b"{}"), ResponseError, "gave no usable answer to nonce"),
        (give(b"\xff"), ResponseError, "gave no usable answer to nonce"),
        (give(b'{"nonce":"' + b"A" * 70000 + b'"}'), ResponseError, "gave no usable answer to nonce"),
    ],
)
def test_an_answer_that_is_no_nonce_is_refused_for_good(
    ca: LyingCa, behaviour: Callable[[lying_ca.Exchange], None], error: type[TpmMtlsError], message: str
) -> None:
    ca.next("nonce", behaviour)

    with pytest.raises(error, match=message), client(ca).exchange() as exchange:
        exchange.nonce(ASKED, now=NOW)


@pytest.mark.parametrize("behaviour", [lying_ca.status(503, retry_after=7), lying_ca.cut_connection()])
def test_a_nonce_may_come_later(ca: LyingCa, behaviour: Callable[[lying_ca.Exchange], None]) -> None:
    ca.next("nonce", behaviour)

    with client(ca).exchange() as exchange:
        assert isinstance(exchange.nonce(ASKED, now=NOW), Later)


def enroll_with(ca: LyingCa, shown: Shown) -> None:
    with client(ca).exchange() as exchange:
        exchange.enroll(make_csr()[0], shown, now=NOW)


@pytest.mark.parametrize("code", [400, 401, 403])
@pytest.mark.parametrize("token", [None, TOKEN])
def test_refused_evidence_is_told_with_advice(ca: LyingCa, code: int, token: BootstrapToken | None) -> None:
    ca.next("simpleenroll", lying_ca.status(code, "no"))

    with pytest.raises(RequestRefusedError, match=rf"evidence of this device's TPM \({code}\): no") as refusal:
        enroll_with(ca, Shown(token, "do something"))

    assert refusal.value.hint == "do something"
    assert ("bootstrap token or the evidence" in str(refusal.value)) is (token is not None)


def test_a_refused_renewal_is_told(ca: LyingCa) -> None:
    ca.next("simplereenroll", lying_ca.status(403, "the current certificate is needed"), lying_ca.status(202))

    with client(ca).exchange() as exchange:
        with pytest.raises(RequestRefusedError, match=r"refused the current certificate \(403\)"):
            exchange.reenroll(make_csr()[0], Shown(), now=NOW)
        assert isinstance(exchange.reenroll(make_csr()[0], Shown(), now=NOW), Later)
