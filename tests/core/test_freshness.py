"""Nonce requests and responses: the draft's JSON, what of ours is in it, and everything that is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.errors import EvidenceError
from tpm_mtls.freshness import (
    CERTIFICATE_LIMIT,
    CHAIN_LIMIT,
    NONCE_LENGTHS,
    PUBLIC_LIMIT,
    REQUEST_LIMIT,
    RESPONSE_LIMIT,
    TYPE_TPM,
    ActivationRequest,
    ActivationResponse,
    NonceRequest,
    NonceResponse,
    bind,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from tpm_mtls.structures import public_area

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
FULL = NonceRequest(32, TYPE_TPM, ActivationRequest(b"ak", b"certificate", b"ek", (b"issuer", b"root")))
ANSWER = NonceResponse(bytes(range(32)), 300, ActivationResponse(b"blob", b"secret"))


def body(**members: object) -> bytes:
    return json.dumps(members).encode()


def activation(**members: object) -> bytes:
    return body(reqTypeInfo={"type": TYPE_TPM, "reqInfo": members})


def answer(**members: object) -> bytes:
    return body(nonce="AAAAAAAAAAA", respTypeInfo={"type": TYPE_TPM, "respInfo": members})


def test_the_binding_is_an_hmac_that_openssl_computes_too() -> None:
    secret, nonce = bytes(range(32)), b"nonce of the server"
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{secret.hex()}", "-binary"],
        input=nonce,
        capture_output=True,
        check=True,
    )
    assert bind(secret, nonce) == done.stdout == hmac.digest(secret, nonce, hashlib.sha256)


def test_the_drafts_examples_are_read() -> None:
    """draft-ietf-lamps-attestation-freshness-08, 5.1."""
    assert decode_request(b'{\n  "len": 32\n}') == NonceRequest(32)
    text = b'{"nonce": "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI", "expiry": 600}'
    assert decode_response(text) == NonceResponse(b"12345678901234567890123456789012", 600)


def test_the_protocol_pages_examples_are_read() -> None:
    request, response = re.findall(r"```json\n(.*?)```", PROTOCOL.read_text(), re.DOTALL)[:2]
    found = decode_request(request.encode())
    assert found.length == 32
    assert found.activation is not None
    assert None not in (found.activation.ek_certificate, found.activation.ek_public)
    assert len(found.activation.ek_chain) == 1
    assert json.loads(encode_request(found)) == json.loads(request)
    given_back = decode_response(response.encode())
    assert given_back.expiry == 300
    assert json.loads(encode_response(given_back)) == json.loads(response)


@pytest.mark.parametrize(
    "request_",
    [
        NonceRequest(),
        NonceRequest(8),
        NonceRequest(64, "1.2.3"),
        FULL,
        NonceRequest(None, TYPE_TPM, ActivationRequest(b"ak", ek_certificate=b"certificate")),
        NonceRequest(None, TYPE_TPM, ActivationRequest(b"ak", ek_public=b"ek")),
    ],
    ids=range(6),
)
def test_requests_are_read_as_written(request_: NonceRequest) -> None:
    assert decode_request(encode_request(request_)) == request_


@pytest.mark.parametrize(
    "response", [NonceResponse(b""), NonceResponse(bytes(8)), NonceResponse(bytes(64), 0), ANSWER], ids=range(4)
)
def test_responses_are_read_as_written(response: NonceResponse) -> None:
    assert decode_response(encode_response(response)) == response


def test_members_that_are_not_needed_are_not_sent() -> None:
    assert encode_request(NonceRequest()) == b"{}"
    assert json.loads(encode_response(NonceResponse(b""))) == {"nonce": ""}
    sent = json.loads(encode_request(NonceRequest(None, TYPE_TPM, ActivationRequest(b"ak", b"certificate"))))
    assert sent == {
        "reqTypeInfo": {"type": TYPE_TPM, "reqInfo": {"akPublic": "YWs", "ekCertificate": "Y2VydGlmaWNhdGU"}}
    }


def test_information_of_another_type_is_not_looked_at() -> None:
    info = {"type": "1.2.3", "reqInfo": {"anything": [1, {"at": "all"}]}}
    assert decode_request(body(reqTypeInfo=info)) == NonceRequest(None, "1.2.3")
    info = {"type": "1.2.3", "respInfo": 17}
    assert decode_response(body(nonce="", respTypeInfo=info)) == NonceResponse(b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "malformed nonce request"),
        (b"[]", "malformed nonce request"),
        (b"{", "malformed nonce request"),
        (b'"\xff"', "malformed nonce request"),
        (b'{"len": 32} {}', "malformed nonce request"),
        (b"[" * 20_000, "malformed nonce request"),
        (b'{"reqTypeInfo": {"type": "1.2.3", "reqInfo": ' + b"[" * 20_000, "malformed nonce request"),
        (b" " * (REQUEST_LIMIT + 1), f"more than {REQUEST_LIMIT} bytes"),
        (body(length=32), "malformed nonce request"),
        (body(len="32"), "malformed nonce request"),
        (body(len=None), "malformed nonce request"),
        (body(len=32.5), "malformed nonce request"),
        (body(len=7), "no nonce has 7 bytes"),
        (body(len=65), "no nonce has 65 bytes"),
        (body(len=-1), "no nonce has -1 bytes"),
        (body(len=10**30), "malformed nonce request|no nonce has"),
        (body(reqTypeInfo={}), "malformed nonce request"),
        (body(reqTypeInfo={"type": "tpm"}), "no object identifier"),
        (body(reqTypeInfo={"type": "1"}), "no object identifier"),
        (body(reqTypeInfo={"type": "1.02"}), "no object identifier"),
        (body(reqTypeInfo={"type": "1.2\n"}), "no object identifier"),
        (body(reqTypeInfo={"type": TYPE_TPM}), "lacks its reqInfo"),
        (body(reqTypeInfo={"type": TYPE_TPM, "reqInfo": None}), "malformed reqInfo"),
        (activation(), "malformed reqInfo"),
        (activation(akPublic="YWs"), "names no endorsement key"),
        (activation(akPublic="YWs", ekPublic="ZWs", more=1), "malformed reqInfo"),
        (activation(akPublic="", ekPublic="ZWs"), "akPublic is no base64url"),
        (activation(akPublic="YWs=", ekPublic="ZWs"), "akPublic is no base64url"),
        (activation(akPublic="YWt", ekPublic="ZWs"), "akPublic is no base64url"),
        (activation(akPublic="YW+_", ekPublic="ZWs"), "akPublic is no base64url"),
        (activation(akPublic="YWsYW", ekPublic="ZWs"), "akPublic is no base64url"),
        (activation(akPublic="YW s", ekPublic="ZWs"), "akPublic is no base64url"),
        (activation(akPublic="A" * (PUBLIC_LIMIT * 4 // 3 + 2), ekPublic="ZWs"), f"at most {PUBLIC_LIMIT} bytes"),
        (activation(akPublic="YWs", ekPublic=""), "ekPublic is no base64url"),
        (
            activation(akPublic="YWs", ekCertificate="A" * (CERTIFICATE_LIMIT * 4 // 3 + 4)),
            "ekCertificate is no base64url",
        ),
        (activation(akPublic="YWs", ekPublic="ZWs", ekChain=["YQ"] * (CHAIN_LIMIT + 1)), f"more than {CHAIN_LIMIT}"),
        (activation(akPublic="YWs", ekPublic="ZWs", ekChain=[""]), "ekChain is no base64url"),
        (activation(akPublic="YWs", ekPublic="ZWs", ekChain="YQ"), "malformed reqInfo"),
    ],
    ids=range(38),
)
def test_any_other_request_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        decode_request(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>", "malformed nonce response"),
        (b"{}", "malformed nonce response"),
        (b" " * (RESPONSE_LIMIT + 1), f"more than {RESPONSE_LIMIT} bytes"),
        (body(nonce="AAAAAAAAAA"), "no nonce has 7 bytes|no base64url"),
        (body(nonce="A" * 87), "no base64url of at most 64 bytes"),
        (body(nonce="AAAAAAAAAAA="), "nonce is no base64url"),
        (body(nonce="AAAAAAAAAAB"), "nonce is no base64url"),
        (body(nonce="AAAAAAAAAAA", expiry=-1), "no number of seconds"),
        (body(nonce="AAAAAAAAAAA", expiry=2**31), "no number of seconds"),
        (body(nonce="AAAAAAAAAAA", expiry="soon"), "malformed nonce response"),
        (body(nonce="AAAAAAAAAAA", more=1), "malformed nonce response"),
        (body(nonce="AAAAAAAAAAA", respTypeInfo={"type": ".."}), "no object identifier"),
        (body(nonce="AAAAAAAAAAA", respTypeInfo={"type": TYPE_TPM}), "lacks its respInfo"),
        (answer(credentialBlob="YQ"), "malformed respInfo"),
        (answer(credentialBlob="YQ", encryptedSecret=""), "encryptedSecret is no base64url"),
        (answer(credentialBlob="A" * 1400, encryptedSecret="YQ"), "credentialBlob is no base64url"),
    ],
    ids=range(16),
)
def test_any_other_response_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        decode_response(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_our_error(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        if data.strip() != b"{}":
            with pytest.raises(EvidenceError):
                decode(data)


_MEMBERS = st.sampled_from(
    ["len", "nonce", "expiry", "type", "reqTypeInfo", "respTypeInfo", "reqInfo", "respInfo", "akPublic", "ekChain"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_MEMBERS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_MEMBERS, _JSON, max_size=4))
def test_any_json_is_a_message_or_our_error(members: dict[str, object]) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(body(**members))
        except EvidenceError:
            continue


_FULL, _ANSWER = encode_request(FULL), encode_response(ANSWER)


@given(st.booleans(), st.data())
def test_damage_raises_our_error_only(is_request: object, draw: st.DataObject) -> None:
    good = _FULL if is_request else _ANSWER
    at = draw.draw(st.integers(0, len(good) - 1))
    damaged = good[:at] + draw.draw(st.binary(min_size=1, max_size=3)) + good[at + 1 :]
    try:
        decode_request(damaged) if is_request else decode_response(damaged)
    except EvidenceError:
        return


def test_the_type_comes_from_its_uuid() -> None:
    """ITU-T X.667, 7: a UUID as one number below 2.25."""
    import uuid

    assert f"2.25.{uuid.UUID('0a16ca45-eace-4ae2-83c8-1b4a92ebd622').int}" == TYPE_TPM


def test_the_limits_agree_with_the_structures() -> None:
    assert public_area.PUBLIC_LIMIT == PUBLIC_LIMIT
    assert (NONCE_LENGTHS[0], NONCE_LENGTHS[-1]) == (8, 64)
