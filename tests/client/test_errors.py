"""Every error of the layers below is mapped, and every alert of OpenSSL's arrives as one of ours."""

from __future__ import annotations

import errno
import http.client
import inspect
import os
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from urllib3 import exceptions

from tpm_mtls.errors import (
    HandshakeError,
    KeyGoneError,
    PeerError,
    PeerUnreachableError,
    PeerUntrustedError,
    ResponseError,
    TpmMtlsError,
    UsageError,
)
from tpm_mtls_client import http_errors
from tpm_mtls_client.dial import Peer, connect_tcp, handshake_error, resolve, unreachable
from tpm_mtls_client.http_errors import request_error
from tpm_mtls_client.timing import Budget, Timeout
from tpm_mtls_client.tls_errors import reason, tls_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tpm_mtls_client import Client

PEER = Peer("host.example", 8443)
ALERTS = {  # RFC 8446, 6 and B.2; those that OpenSSL 3 knows as fatal ones of the peer
    10: "unexpected message",
    20: "bad record mac",
    22: "record overflow",
    40: "handshake failure",
    42: "bad certificate",
    43: "unsupported certificate",
    44: "certificate revoked",
    45: "certificate expired",
    46: "certificate unknown",
    47: "illegal parameter",
    48: "unknown ca",
    49: "access denied",
    50: "decode error",
    51: "decrypt error",
    70: "protocol version",
    71: "insufficient security",
    80: "internal error",
    86: "inappropriate fallback",
    109: "missing extension",
    110: "unsupported extension",
    112: "unrecognized name",
    113: "bad certificate status response",
    116: "certificate required",
    120: "no application protocol",
}


def _classes(module: object, parent: type) -> Iterable[type]:
    return [value for _, value in inspect.getmembers(module, inspect.isclass) if issubclass(value, parent)]


def _budget() -> Budget:
    return Budget(Timeout())


def _make(cls: type[BaseException]) -> BaseException:
    """An instance, without the arguments that urllib3's constructors want."""
    made = cls.__new__(cls)
    made.args = ("x",)
    if cls is exceptions.MaxRetryError:
        made.reason = None  # type: ignore[attr-defined]
    return made


# --- completeness ---


@pytest.mark.parametrize(
    "cls",
    [cls for cls in _classes(exceptions, exceptions.HTTPError) if not issubclass(cls, Warning)],
    ids=lambda cls: cls.__name__,
)
def test_every_exception_of_urllib3_is_mapped_and_not_by_the_last_resort(cls: type[Exception]) -> None:
    error = request_error(_make(cls), str(PEER), _budget())  # type: ignore[arg-type]  # an exception, whatever its class
    assert isinstance(error, TpmMtlsError)
    assert error.hint
    general = {exceptions.HTTPError, exceptions.PoolError, exceptions.RequestError, exceptions.MaxRetryError}
    pool_is_never_blocking = {exceptions.EmptyPoolError, exceptions.FullPoolError}
    other_than_peer = {exceptions.TimeoutStateError}  # urllib3 used wrongly
    if cls not in general | pool_is_never_blocking | other_than_peer:
        assert type(error) is not PeerError, "give it an entry in http_errors"


@pytest.mark.parametrize("cls", _classes(http.client, http.client.HTTPException), ids=lambda cls: cls.__name__)
def test_every_exception_of_http_client_is_mapped(cls: type[Exception]) -> None:
    error = request_error(_make(cls), str(PEER), _budget())  # type: ignore[arg-type]  # the same
    assert isinstance(error, (ResponseError, HandshakeError))


@pytest.mark.parametrize("cls", _classes(ssl, ssl.SSLError), ids=lambda cls: cls.__name__)
def test_every_kind_of_ssl_error_is_mapped(cls: type[ssl.SSLError]) -> None:
    error = cls(1, "[SSL: SOMETHING_NEW] something new (_ssl.c:1)")
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_code, error.verify_message = 999, "Something New."
    mapped = tls_error(error, str(PEER))
    expected = PeerUntrustedError if isinstance(error, ssl.SSLCertVerificationError) else HandshakeError
    assert type(mapped) is expected
    assert str(mapped).startswith(("host.example:8443 ", "the certificate of host.example:8443 "))
    assert type(request_error(exceptions.SSLError(error), str(PEER), _budget())) is expected


@pytest.mark.parametrize("code", sorted(errno.errorcode), ids=errno.errorcode.__getitem__)
def test_every_error_of_the_system_is_mapped(code: int) -> None:
    error = OSError(code, os.strerror(code))
    assert isinstance(unreachable(error, PEER, "answer"), PeerUnreachableError)
    mapped = request_error(exceptions.ProtocolError("aborted", error), str(PEER), _budget())
    assert isinstance(mapped, (PeerUnreachableError, HandshakeError))
    assert str(mapped) == str(mapped).strip()


# --- what they say ---


def _answer_to_client_hello(client: Client, data: bytes) -> ssl.SSLError:
    """What OpenSSL says when ``data`` comes instead of a ServerHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = client.context.wrap_bio(incoming, outgoing, server_hostname="host.example")
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    incoming.write(data)
    with pytest.raises(ssl.SSLError) as caught:
        connection.do_handshake()
    return caught.value


@pytest.mark.parametrize(("number", "name"), ALERTS.items(), ids=ALERTS.values())
def test_an_alert_is_named_and_explained(client: Client, number: int, name: str) -> None:
    error = tls_error(_answer_to_client_hello(client, bytes([21, 3, 3, 0, 2, 2, number])), str(PEER))
    assert type(error) is HandshakeError
    assert f"(alert {name})" in str(error)
    assert str(error).startswith("host.example:8443 ")
    assert error.hint


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail ready\r\n"]
)
def test_another_protocol_is_recognized(client: Client, data: bytes) -> None:
    error = tls_error(_answer_to_client_hello(client, data), str(PEER))
    assert str(error) == "host.example:8443 does not speak TLS on that port"


def test_a_certificate_problem_without_an_entry_is_told_in_openssls_words() -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_code, error.verify_message = 42, "Some new check failed."
    assert str(tls_error(error, "h:1")) == "the certificate of h:1 is refused: some new check failed"


def test_the_reason_is_read_from_the_text_when_python_has_no_name_for_it() -> None:
    assert reason(ssl.SSLError(1, "[SSL] tlsv1 alert no application protocol (_ssl.c:1006)")) == (
        "TLSV1_ALERT_NO_APPLICATION_PROTOCOL"
    )
    assert reason(ssl.SSLError()) == "UNKNOWN"


def test_the_own_keys_trouble_goes_before_what_tls_says() -> None:
    error = ssl.SSLError(1, "[SSL] internal error (_ssl.c:1)")
    error.__cause__ = gone = KeyGoneError("gone", hint="load it again", rc=0x18B)
    assert handshake_error(error, PEER) is gone
    error.__cause__ = OSError()
    assert isinstance(handshake_error(error, PEER), HandshakeError)


def test_a_wrapped_cause_is_found() -> None:
    inner = exceptions.ProtocolError("Connection aborted.", http.client.RemoteDisconnected("bye"))
    outer = exceptions.MaxRetryError(None, "/", inner)  # type: ignore[arg-type]  # its pool is not looked at
    assert "closed the connection without an answer" in str(request_error(outer, "h:1", _budget()))


def test_what_the_peer_sent_does_not_get_into_the_message() -> None:
    error = exceptions.ProtocolError("Connection aborted.", http.client.BadStatusLine("\x1b[31mevil"))
    assert str(request_error(error, "h:1", _budget())) == "the answer of h:1 is not proper HTTP: bad status line"


def test_an_unknown_error_is_still_one_of_ours() -> None:
    assert http_errors.request_error(ArithmeticError("x"), "h:1", _budget()).hint


# --- names and addresses ---


def test_a_peer_is_written_as_in_a_url() -> None:
    assert str(Peer("::1", 443)) == "[::1]:443"
    assert str(Peer("host.example", 443)) == "host.example:443"


def test_the_name_to_verify_has_no_zone_and_no_last_dot() -> None:
    assert Peer("fe80::1%eth0", 443).name == "fe80::1"
    assert Peer("host.example.", 443).name == "host.example"


@pytest.mark.parametrize("host", ["." * 3, "a" * 64, "a..b"])
def test_what_is_no_host_name_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="not a host name"):
        resolve(Peer(host, 443))


def test_the_next_address_is_tried_when_one_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        nobody = ("127.0.0.1", 1)
        family = socket.AF_INET
        with connect_tcp(PEER, [(family, nobody), (family, address)], _budget()) as connection:
            assert connection.getpeername() == address
    with pytest.raises(PeerUnreachableError, match="nothing listens there"):
        connect_tcp(PEER, [(family, nobody)], _budget())
    with pytest.raises(PeerUnreachableError, match="it has no address"):
        connect_tcp(PEER, [], _budget())
