"""EST messages: what we write suits strict readers, and nothing that comes in raises anything but our errors."""

from __future__ import annotations

import base64
import subprocess
from contextlib import suppress

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls import est
from tpm_mtls.certificates import parse_certificates
from tpm_mtls.errors import PemError


def certificates(count: int) -> list[x509.Certificate]:
    ca = trustme.CA()
    chain = [ca.cert_pem.bytes()] + [
        ca.issue_cert(f"h{number}.example").cert_chain_pems[0].bytes() for number in range(count - 1)
    ]
    return list(parse_certificates(b"".join(chain), name="test"))


def openssl(*arguments: str, stdin: bytes) -> str:
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=True)
    return (done.stdout + done.stderr).decode()  # some answers move from one to the other between OpenSSL 3.0 and 3.5


def test_a_body_is_one_line_of_base64_and_one_lf() -> None:
    assert est.encode_body(bytes(200)) == base64.b64encode(bytes(200)) + b"\n"


@given(st.binary(min_size=1, max_size=400), st.sampled_from([b"", b"\n", b"\r\n", b" \t\r\n"]), st.integers(1, 80))
def test_line_breaks_and_white_space_mean_nothing(der: bytes, white: bytes, width: int) -> None:
    text = base64.b64encode(der)
    body = white.join(text[at : at + width] for at in range(0, len(text), width))
    assert est.decode_body(white + body + white) == der


@pytest.mark.parametrize(
    "body", [b"<html>sorry</html>", b"AAA", b"AAAA=", b"AA==AA==", b"AA-_", b"\xff\xfe", b"QUJD\0"]
)
def test_what_is_not_base64_is_refused(body: bytes) -> None:
    with pytest.raises(PemError, match="is not base64"):
        est.decode_body(body)


@pytest.mark.parametrize("body", [b"", b"\r\n \t"])
def test_an_empty_body_is_refused(body: bytes) -> None:
    with pytest.raises(PemError, match="is empty"):
        est.decode_body(body)


def test_a_body_is_capped() -> None:
    assert est.decode_body(b"A" * est.BODY_LIMIT)
    with pytest.raises(PemError, match="larger than 65536 bytes"):
        est.decode_body(b"A" * (est.BODY_LIMIT + 1))


def test_certificates_make_the_round_trip() -> None:
    sent = certificates(3)
    assert set(est.decode_certificates(est.encode_certificates(sent))) == set(sent)


def test_openssl_reads_our_certificates_and_we_read_openssls() -> None:
    (certificate,) = certificates(1)
    ours = est.decode_body(est.encode_certificates([certificate]))
    printed = openssl("pkcs7", "-inform", "DER", "-print_certs", stdin=ours)
    assert parse_certificates(printed.encode(), name="openssl") == (certificate,)
    pem = certificate.public_bytes(Encoding.PEM)
    theirs = subprocess.run(
        ["openssl", "crl2pkcs7", "-nocrl", "-certfile", "/dev/stdin", "-outform", "DER"],
        input=pem,
        capture_output=True,
        check=True,
    ).stdout
    assert est.decode_certificates(est.encode_body(theirs)) == (certificate,)


def test_an_answer_with_too_many_certificates_is_refused() -> None:
    (certificate,) = certificates(1)
    with pytest.raises(PemError, match="holds 17 certificates"):
        est.decode_certificates(est.encode_certificates([certificate] * (est.CERTIFICATES_LIMIT + 1)))


def test_an_answer_without_certificates_is_refused() -> None:
    empty = subprocess.run(
        ["openssl", "crl2pkcs7", "-nocrl", "-outform", "DER"], capture_output=True, check=True, stdin=subprocess.DEVNULL
    ).stdout
    with pytest.raises(PemError):
        est.decode_certificates(est.encode_body(empty))


def test_an_answer_with_a_certificate_of_an_unknown_version_is_refused() -> None:
    der = est.decode_body(est.encode_certificates(certificates(1)))
    with pytest.raises(PemError, match="no certificates in CMS form"):
        est.decode_certificates(est.encode_body(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)))


_GOOD = base64.b64decode(est.encode_certificates(certificates(2)))


@given(st.binary(max_size=300).map(est.encode_body) | st.binary(max_size=300))
def test_any_bytes_are_certificates_or_our_error(body: bytes) -> None:
    with pytest.raises(PemError):
        est.decode_certificates(body)


@given(st.integers(0, len(_GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_damaged_certificates_raise_our_error_only(at: int, wrong: bytes) -> None:
    damaged = _GOOD[:at] + wrong + _GOOD[at + len(wrong) :]
    with suppress(PemError):
        est.decode_certificates(est.encode_body(damaged))


def test_a_certificate_of_an_unknown_version_is_our_error() -> None:
    der = _GOOD.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05")
    assert der != _GOOD
    with pytest.raises(PemError, match="no certificates in CMS form"):
        est.decode_certificates(est.encode_body(der))


@given(st.integers(0, len(_GOOD) - 1))
def test_truncated_certificates_are_refused(length: int) -> None:
    with pytest.raises(PemError):
        est.decode_certificates(est.encode_body(_GOOD[:length]))


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ("application/pkcs10", True),
        ("Application/PKCS10 ; charset=x", True),
        ("application/pkcs7-mime", False),
        ("", False),
        (None, False),
    ],
)
def test_media_types_are_compared_without_parameters_and_case(header: str | None, matches: object) -> None:
    assert est.is_media_type(header, est.CSR_TYPE) is bool(matches)


def test_openssl_reads_the_csrattrs() -> None:
    printed = openssl("asn1parse", "-inform", "DER", stdin=est.decode_body(est.encode_csrattrs()))
    evidence, template = "1.2.840.113549.1.9.16.2.59", "1.2.840.113549.1.9.16.2.61"
    for name in ("id-ecPublicKey", "prime256v1", "secp384r1", "ecdsa-with-SHA256", evidence, template):
        assert f":{name}\n" in printed


def test_the_csrattrs_template_is_the_rfcs() -> None:
    """RFC 9908, 3.4: version 0, no subject, [0] a P-256 key without its value, [1] no attributes."""
    template = bytes.fromhex("301c 020100 a015 3013 06072a8648ce3d0201 06082a8648ce3d030107 a100")
    assert est.decode_body(est.encode_csrattrs()).endswith(bytes([0x31, len(template)]) + template)


def test_openssl_reads_the_request() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    request = est.decode_body(est.encode_csr(csr))
    assert "verify OK" in openssl("req", "-inform", "DER", "-noout", "-verify", stdin=request)
