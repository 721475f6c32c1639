"""Names of operators: people, never devices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tpm_mtls.device_names import check_device_name, device_name
from tpm_mtls.errors import CredentialError, UsageError
from tpm_mtls.operator_names import OPERATOR_NAME_LIMIT, check_operator_name, operator_name

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(names: list[x509.GeneralName] | None) -> x509.Certificate:
    """A certificate with these alternative names, and none for none."""
    now = datetime.now(UTC)
    subject = x509.Name([])
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), 1, now, now + timedelta(days=1))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256())


@pytest.mark.parametrize("name", ["alice@example.com", "a.b+ops_1@h-1.example", "a@b.c", "a" * 52 + "@example.com"])
def test_a_mail_address_names_an_operator(name: str) -> None:
    assert check_operator_name(name) == name
    assert operator_name(certificate([x509.RFC822Name(name)])) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "alice", "@example.com", "alice@", "alice@localhost", "alice@@example.com", "Alice@example.com"),
        *("alice@Example.com", "alice @example.com", "alice@example.com\n", "alice@example.com.", ".a@example.com"),
        *("a..b@example.com", "a$b@example.com", '"a b"@example.com', "alice@*.example.com", "alice@[192.0.2.1]"),
        "a" * 53 + "@example.com",
    ],
)
def test_another_text_names_none(name: str) -> None:
    with pytest.raises(UsageError, match="not an operator's name: "):
        check_operator_name(name)
    names: list[x509.GeneralName] = [x509.RFC822Name._init_without_validation(name)]
    with pytest.raises(CredentialError, match="names no single operator"):
        operator_name(certificate(names))


@pytest.mark.parametrize(
    "names",
    [
        [x509.RFC822Name("alice@example.com"), x509.RFC822Name("bob@example.com")],
        [x509.RFC822Name("alice@example.com"), x509.DNSName("sensor-17")],
        [x509.DNSName("sensor-17")],
        [x509.UniformResourceIdentifier("mailto:alice@example.com")],
    ],
    ids=["two", "and a device's", "a device's", "another kind"],
)
def test_another_number_or_kind_of_names_is_refused(names: list[x509.GeneralName]) -> None:
    with pytest.raises(CredentialError, match="names no single operator"):
        operator_name(certificate(names))


def test_a_certificate_without_alternative_names_names_none() -> None:
    with pytest.raises(CredentialError, match="names no operator"):
        operator_name(certificate(None))


def test_an_operators_certificate_names_no_device() -> None:
    with pytest.raises(CredentialError, match="names no single device"):
        device_name(certificate([x509.RFC822Name("alice@example.com")]))


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9.+_-]{1,40}@[a-z0-9.-]{1,40}", fullmatch=True))
def test_no_text_names_a_device_and_an_operator(text: str) -> None:
    accepted = []
    for check in (check_device_name, check_operator_name):
        try:
            accepted.append(check(text))
        except UsageError:
            continue
    assert len(accepted) <= 1
    assert all(len(name) <= OPERATOR_NAME_LIMIT for name in accepted)
