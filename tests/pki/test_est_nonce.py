"""The nonce endpoint: draft-ietf-lamps-attestation-freshness-08, 5.1, over real TLS connections."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from support.authority import est_host
from tpm_mtls import est, freshness
from tpm_mtls.structures import parse_public_area
from tpm_mtls_pki.est_nonce import _source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.authority import EstHost
    from support.reference_device import ReferenceDevice
    from tpm_mtls_pki.issuance import Registrar


@pytest.fixture
def host(registrar: Registrar) -> Iterator[EstHost]:
    with est_host(registrar) as running:
        yield running


def post(host: EstHost, body: bytes, media_type: str = est.NONCE_TYPE) -> tuple[int, dict[str, str], bytes]:
    return host.request("POST", est.NONCE, body, {"Content-Type": media_type})


def given(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    status, headers, body = answer
    assert (status, headers["Content-Type"]) == (200, "application/est-attestation-freshness+json")
    content: dict[str, Any] = json.loads(body)
    return content


def test_a_get_gives_a_nonce_of_32_bytes_for_five_minutes(host: EstHost) -> None:
    first, second = (given(host.request("GET", est.NONCE)) for _ in range(2))
    assert first.keys() == {"nonce", "expiry"}
    assert len(base64.urlsafe_b64decode(first["nonce"] + "=")) == 32
    assert first["expiry"] == 300
    assert first["nonce"] != second["nonce"]


def test_the_answer_suits_the_strictest_clients(host: EstHost) -> None:
    """And nobody keeps it: neither a cache nor a page."""
    _, headers, body = host.request("GET", est.NONCE)
    assert headers["Content-Length"] == str(len(body))
    assert len(str(headers)) < 1000
    assert headers["Cache-Control"] == "no-store"
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert cookie.startswith("est-exchange=")
    assert set(attributes) == {"HttpOnly", "Max-Age=300", "Path=/.well-known/est", "SameSite=Strict", "Secure"}


@pytest.mark.parametrize("length", [8, 48, 64])
def test_a_nonce_has_the_length_that_was_asked_for(host: EstHost, length: int) -> None:
    nonce = given(post(host, json.dumps({"len": length}).encode()))["nonce"]
    assert len(base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))) == length


def test_a_type_of_somebody_else_gets_a_nonce_only(host: EstHost) -> None:
    body = {"reqTypeInfo": {"type": "2.25.1", "reqInfo": [1, 2]}}
    assert given(post(host, json.dumps(body).encode())).keys() == {"nonce", "expiry"}


@pytest.mark.parametrize("device", ["rsa", "ecc"], indirect=True)
def test_a_credential_is_opened_by_its_tpm(host: EstHost, device: ReferenceDevice) -> None:
    """With the EK certificate, and with the EK's public area, for a TPM that has none."""
    whole = device.request()
    bare = device.request()
    info = bare["reqTypeInfo"]["reqInfo"]
    del info["ekCertificate"]
    info["ekPublic"] = base64.urlsafe_b64encode(device.ek_public).rstrip(b"=").decode()
    for request in (whole, bare):
        answer = given(post(host, json.dumps(request).encode()))
        assert answer["respTypeInfo"]["type"] == freshness.TYPE_TPM
        assert len(device.open(answer).qualifying_data) == 32


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("ekCertificate", "AAAA", "a certificate of the evidence is damaged"),
        ("akPublic", "AAAA", "malformed public area"),
        ("akPublic", None, "malformed reqInfo"),
        ("ekCertificate", None, "a nonce request of our type names no endorsement key"),
        ("ekChain", ["AAAA"], "a certificate of the evidence is damaged"),
        ("ekChain", ["AAAA"] * 9, "more than 4 certificates above the EK certificate"),
        ("more", 1, "malformed reqInfo"),
    ],
)
def test_what_nobody_can_answer_is_a_bad_request(
    host: EstHost, device: ReferenceDevice, member: str, value: object, message: str
) -> None:
    request = device.request()
    info = request["reqTypeInfo"]["reqInfo"]
    if value is None:
        del info[member]
    else:
        info[member] = value
    status, headers, body = post(host, json.dumps(request).encode())
    assert (status, body.decode()) == (400, f"{message}\n")
    assert "Set-Cookie" not in headers


def test_an_endorsement_key_must_be_one_for_which_a_credential_can_be_made(
    host: EstHost, device: ReferenceDevice
) -> None:
    request = device.request()
    request["reqTypeInfo"]["reqInfo"]["ekPublic"] = request["reqTypeInfo"]["reqInfo"]["akPublic"]
    status, _, body = post(host, json.dumps(request).encode())
    assert status == 400
    assert b"is not accepted" in body
    assert parse_public_area(device.ak.public).spki == device.ak.spki


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((each, 400) for each in (b"", b"{", b"[]", b'{"len": 7}', b'{"len": 65}', b"\xff")),
        (b'{"len": ' + b"[" * 20_000, 400),
        (b" " * 30_000, 400),
        (b" " * 70_000, 413),
    ],
    ids=range(9),
)
def test_garbage_is_refused(host: EstHost, body: bytes, status: int) -> None:
    assert post(host, body)[0] == status


def test_other_methods_and_media_types_are_refused(host: EstHost) -> None:
    assert post(host, b"{}", "application/json")[0] == 415
    assert host.request("POST", est.NONCE, b"{}")[0] == 415
    status, headers, _ = host.request("PUT", est.NONCE, b"{}")
    assert (status, headers["Allow"]) == (405, "GET,POST")
    assert host.request("HEAD", est.NONCE)[0] == 405


@pytest.mark.parametrize(
    ("remote", "source"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::1:7", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64"), (None, "")],
)
def test_one_network_has_one_share(remote: str | None, source: str) -> None:
    """Of IPv6 addresses everybody has 2^64."""
    assert _source(remote) == source
