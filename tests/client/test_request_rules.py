"""What is refused before anything is sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import UsageError
from tpm_mtls_client.dial import Peer
from tpm_mtls_client.request import Target, check_headers, check_method, parse_target


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://host.example", Target(Peer("host.example", 443), "/")),
        ("https://host.example:8443/a/b?c=d#e", Target(Peer("host.example", 8443), "/a/b?c=d")),
        ("HTTPS://HOST.example/", Target(Peer("host.example", 443), "/")),
        ("https://[::1]:8443/", Target(Peer("::1", 8443), "/")),
        ("https://127.0.0.1/ä b", Target(Peer("127.0.0.1", 443), "/%C3%A4%20b")),
    ],
)
def test_a_url_becomes_host_port_and_path(url: str, target: Target) -> None:
    assert parse_target(url) == target


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host.example/", "not an https URL"),
        ("host.example", "not an https URL"),
        ("//host.example/", "not an https URL"),
        ("ftp://host.example/", "not an https URL"),
        ("", "not an https URL"),
        ("https://", "not a URL"),
        ("https:///path", "not a URL"),
        ("https://host.example:0/", "not a URL"),
        ("https://host.example:99999/", "not a URL"),
        ("https://host.example:port/", "not a URL"),
        ("https://[::1/", "not a URL"),
    ],
)
def test_what_is_no_https_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_target(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    for url in ("https://user:hush@host.example/", "http://user:hush@host.example/", "https://user:hush@host:bad/"):
        with pytest.raises(UsageError) as caught:
            parse_target(url)
        assert "hush" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_target_or_a_usage_error(text: str) -> None:
    for url in (text, f"https://{text}", f"https://host/{text}", f"https://host:{text}/"):
        try:
            target = parse_target(url)
        except UsageError:
            continue
        assert target.path.startswith("/")
        assert target.path.isascii()
        assert target.path.isprintable()
        assert " " not in target.path
        assert target.peer.host
        assert 0 < target.peer.port < 65536


@given(st.text())
def test_what_is_refused_is_shown_without_what_a_terminal_would_obey(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(f"ftp://{text}")
    assert str(caught.value).isprintable()


def test_methods_are_tokens() -> None:
    assert check_method("get") == "GET"
    for method in ("", "GET ", "GE\r\nT", "CONNECT"):
        with pytest.raises(UsageError, match="not a request method"):
            check_method(method)


def test_header_fields_are_copied() -> None:
    given_headers = {"X-Name": "value\twith tab", "X-Latin": "ä"}
    assert check_headers(given_headers) == given_headers
    assert check_headers(given_headers) is not given_headers


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Name", "two\r\nlines"), ("X-Name", "nul\0"), ("X Name", "x"), ("", "x"), ("X-Name:", "x"), ("X-Name", "€")],
)
def test_a_header_that_would_break_the_message_is_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match="not a header"):
        check_headers({name: value})


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "HOST", "Connection", "Upgrade"])
def test_framing_is_not_the_callers_business(name: str) -> None:
    with pytest.raises(UsageError, match="the client's own business"):
        check_headers({name: "x"})
