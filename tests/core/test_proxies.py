"""Who relies on an HTTP proxy learns that none is used where that matters: when a server cannot be reached."""

from __future__ import annotations

import pytest

from tpm_mtls.device_requests.messages import Server
from tpm_mtls.errors import PeerUnreachableError
from tpm_mtls.proxies import unused_proxy
from tpm_mtls_client.dial import Peer, resolve, unreachable

VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
PROXY = "http://user:PASSWORD@proxy.example:3128"
HOST = "ca.example"
NOTE = "; {} is set, but tpm-mtls uses no proxy: this machine must reach ca.example itself"


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_that_other_programs_read_is_named_without_its_value(name: str) -> None:
    assert unused_proxy(HOST, {name: PROXY}) == NOTE.format(name)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"http_proxy": PROXY},  # for plain HTTP
        {"https_proxy": ""},
        {"https_proxy": PROXY, "no_proxy": "localhost,.example"},
        {"https_proxy": PROXY, "NO_PROXY": "*"},
    ],
)
def test_where_no_proxy_is_meant_for_the_host_there_is_nothing_to_say(environment: dict[str, str]) -> None:
    assert unused_proxy(HOST, environment) == ""


def test_an_exception_for_another_host_changes_nothing() -> None:
    assert unused_proxy(HOST, {"https_proxy": PROXY, "no_proxy": "other.example"}) == NOTE.format("https_proxy")


def test_the_hints_of_ca_backend_and_client_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server(HOST, 8443, "", "the CA", "https://ca.example:8443", "check the URL")
    assert server.unreachable("does not answer").hint == "check the URL"
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    note = NOTE.format("HTTPS_PROXY")
    assert server.unreachable("does not answer").hint == "check the URL" + note
    for error in (ConnectionRefusedError(111, "Connection refused"), TimeoutError()):
        assert unreachable(error, Peer(HOST, 8443), "answer").hint.endswith(note)
    with pytest.raises(PeerUnreachableError, match="does not resolve") as caught:
        resolve(Peer("nowhere.invalid", 8443))
    assert caught.value.hint.endswith("this machine must reach nowhere.invalid itself")
