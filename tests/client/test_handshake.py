"""Handshake messages and certificates from outside are read without surprises, whatever they hold."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls_client.certificate_facts import CertificateFacts, chain_facts
from tpm_mtls_client.handshake import Handshake
from tpm_mtls_client.text import one_line

if TYPE_CHECKING:
    from support.certificates import TestCa

HANDSHAKE, SERVER_HELLO, CERTIFICATE, KEY_EXCHANGE, REQUEST, VERIFY = 22, 2, 11, 12, 13, 15
HEADER = b"head"


def heard(kind: int, body: bytes, *, direction: str = "read") -> Handshake:
    handshake = Handshake()
    handshake.hear(None, direction, None, HANDSHAKE, kind, HEADER + body)
    return handshake


def server_hello(*extensions: tuple[int, bytes]) -> bytes:
    body = b"".join(kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data for kind, data in extensions)
    return b"\3\3" + bytes(32) + b"\0" + b"\x13\1" + b"\0" + len(body).to_bytes(2, "big") + body


def test_groups_are_named_or_numbered() -> None:
    assert heard(SERVER_HELLO, server_hello((43, b"\3\4"), (51, b"\0\x1d" + bytes(34)))).group == "x25519"
    assert heard(SERVER_HELLO, server_hello((51, b"\x9a\x9a" + bytes(34)))).group == "0x9a9a"
    assert heard(SERVER_HELLO, server_hello((43, b"\3\4"))).group is None
    assert heard(KEY_EXCHANGE, b"\3\0\x17").group == "secp256r1"
    assert heard(KEY_EXCHANGE, b"\1\0\x17").group is None, "an explicit curve"


def test_signature_schemes_are_those_that_we_sent() -> None:
    assert heard(VERIFY, b"\x04\x03", direction="write").signature_scheme == "ecdsa_secp256r1_sha256"
    assert heard(VERIFY, b"\x12\x34", direction="write").signature_scheme == "0x1234"
    assert heard(VERIFY, b"\x04\x03").signature_scheme is None


def test_a_request_is_noticed() -> None:
    assert heard(REQUEST, b"").certificate_was_requested
    assert not Handshake().certificate_was_requested


def test_other_messages_are_not_kept() -> None:
    handshake = heard(20, b"x")
    handshake.hear(None, "read", None, 23, CERTIFICATE, b"data")
    assert handshake == Handshake()


def test_chains_of_both_versions() -> None:
    certificates = [b"leaf", b"issuer"]
    old = b"".join(len(data).to_bytes(3, "big") + data for data in certificates)
    assert heard(CERTIFICATE, len(old).to_bytes(3, "big") + old).peer_chain == certificates
    new = b"".join(len(data).to_bytes(3, "big") + data + b"\0\2xx" for data in certificates)
    handshake = heard(SERVER_HELLO, server_hello((43, b"\3\4")))
    handshake.hear(None, "read", None, HANDSHAKE, CERTIFICATE, HEADER + b"\0" + len(new).to_bytes(3, "big") + new)
    assert handshake.peer_chain == certificates


def test_an_endless_chain_ends() -> None:
    chain = b"\0\0\1x" * 1000
    assert len(heard(CERTIFICATE, len(chain).to_bytes(3, "big") + chain).peer_chain) == 10


@given(st.dictionaries(st.sampled_from([SERVER_HELLO, CERTIFICATE, KEY_EXCHANGE, REQUEST, VERIFY]), st.binary()))
def test_any_bytes_are_read_to_something(messages: dict[int, bytes]) -> None:
    handshake = Handshake(received=messages, sent=messages)
    assert handshake.group is None or handshake.group
    assert handshake.signature_scheme is None or handshake.signature_scheme
    assert len(handshake.peer_chain) <= 10
    assert isinstance(chain_facts(handshake.peer_chain), list)


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_what_is_no_certificate_is_left_out(chain: list[bytes]) -> None:
    assert chain_facts(chain) == []


def test_a_certificate_without_names_and_with_control_characters() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\x1b[31mb")])
    start = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    certificate = x509.CertificateBuilder(x509.Name([]), name, key.public_key(), 255, start, start + dt.timedelta(1))
    der = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    (facts,) = chain_facts([der])
    assert facts == CertificateFacts(
        subject="CN=a [31mb",
        issuer="(no issuer)",
        names=(),
        not_before="2026-01-02T03:04:05Z",
        not_after="2026-01-03T03:04:05Z",
        serial="ff",
    )
    assert str(facts).startswith("CN=a [31mb, valid 2026-01-02T03:04:05Z to")


def test_one_of_our_certificates(ca: TestCa) -> None:
    der = ca.issuing.public_bytes(serialization.Encoding.DER)
    of_no_version = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
    (facts,) = chain_facts([der, of_no_version])
    assert (facts.subject, facts.issuer) == ("CN=test issuing CA", "CN=test root")


@given(st.text())
def test_text_from_outside_becomes_one_printable_line(text: str) -> None:
    line = one_line(text, 20)
    assert len(line) <= 20
    assert line.isprintable()
